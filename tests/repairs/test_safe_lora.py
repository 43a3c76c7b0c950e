# SPDX-License-Identifier: Apache-2.0
"""Safe LoRA on PEFT adapters and full checkpoints against the paper's formula in dense fp64."""

import math
import statistics
from operator import gt

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from moored.data.tiny import tiny_model
from moored.errors import CheckpointError, ConfigError, NeedsError
from moored.repairs.base import Delta, Layer, LayerScore
from moored.repairs.baselines import DropModules
from moored.repairs.engine import repair
from moored.repairs.safe_lora import SafeLoRA, score_safety
from moored.repairs.safe_merge import SafeMERGE
from repairs.repair_models import factors, noise_, save_adapter, save_pair, weights

EVERYTHING = SafeLoRA(fraction=1.0)


def oracle(aligned, base, update):
    """C Delta and the cosine, dense and in fp64."""
    v = aligned.double() - base.double()
    moved = v @ v.T / v.norm() @ update.double()
    return moved, float(torch.sum(moved * update.double()) / moved.norm() / update.double().norm())


def check(adapter, out, report, aligned, base, *, scale=2.0, transposed=False):
    """Every edited module of an adapter holds C Delta of its own matrices."""
    before, after = factors(adapter), factors(out)
    aligned, base = weights(aligned), weights(base)
    assert before.keys() == after.keys() == {row.module for row in report.modules}
    for row in report.modules:
        old, new = ((b.double() @ a.double()) for a, b in (before[row.module], after[row.module]))
        pair = [w[f"{row.module}.weight"] for w in (aligned, base)]
        moved, angle = oracle(*[w.T if transposed else w for w in pair], old)
        assert row.cosine == pytest.approx(angle, abs=1e-6)
        assert row.norm == pytest.approx(scale * float(old.norm()), rel=1e-5)
        assert torch.linalg.norm(new - (moved if row.edited else old)) <= 1e-5 * old.norm()


def test_every_module_holds_the_formula(trio, tmp_path):
    report = repair(trio.adapter, EVERYTHING, aligned=trio.aligned, base=trio.base, out=tmp_path / "out")
    assert report.changed == len(report.modules) == 8
    check(trio.adapter, tmp_path / "out", report, trio.aligned, trio.base)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_shards_are_subtracted_in_fp32(dtype, tmp_path):
    aligned, base = save_pair(tmp_path, dtype=dtype, shards="30KB")
    adapter = save_adapter(aligned, tmp_path / "adapter")
    report = repair(adapter, EVERYTHING, aligned=aligned, base=base, out=tmp_path / "out")
    check(adapter, tmp_path / "out", report, aligned, base)


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"layers_to_transform": [1]}, 2.0),
        ({"r": 16, "target_modules": ["k_proj", "v_proj"], "lora_alpha": 16}, 1.0),  # r equals the output width
        ({"target_modules": r".*layers\.1\.(self_attn\.q_proj|mlp\.down_proj)"}, 2.0),
        ({"target_modules": "all-linear"}, 2.0),
        ({"bias": "all"}, 2.0),
        ({"use_rslora": True}, 4.0),
        ({"r": 64, "lora_alpha": 64}, 1.0),  # more rank than inputs
    ],
)
def test_any_way_of_naming_modules(config, scale, trio, tmp_path):
    adapter = save_adapter(trio.aligned, tmp_path / "adapter", **config)
    report = repair(adapter, EVERYTHING, aligned=trio.aligned, base=trio.base, out=tmp_path / "out")
    check(adapter, tmp_path / "out", report, trio.aligned, trio.base, scale=scale)
    if "layers_to_transform" in config:
        assert {row.module.split(".")[2] for row in report.modules} == {"1"}


def test_layers_2_and_3_use_their_own_matrices(tmp_path):
    aligned, base = save_pair(tmp_path, num_hidden_layers=5)
    adapter = save_adapter(aligned, tmp_path / "adapter", layers_to_transform=[2, 3])
    report = repair(adapter, EVERYTHING, aligned=aligned, base=base, out=tmp_path / "out")
    assert {row.module.split(".")[2] for row in report.modules} == {"2", "3"}
    check(adapter, tmp_path / "out", report, aligned, base)


def test_rank_and_alpha_patterns(trio, tmp_path):
    config = {"rank_pattern": {"v_proj": 2, r"layers\.1\.mlp\.up_proj": 7}, "alpha_pattern": {"v_proj": 3}}
    adapter = save_adapter(trio.aligned, tmp_path / "adapter", **config)
    report = repair(adapter, EVERYTHING, aligned=trio.aligned, base=trio.base, out=tmp_path / "out")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(trio.aligned), adapter)
    before, after, (al, ba) = factors(adapter), factors(tmp_path / "out"), (weights(trio.aligned), weights(trio.base))
    for row in report.modules:
        update = model.base_model.model.get_submodule(row.module).get_delta_weight("default").detach()
        moved, angle = oracle(al[f"{row.module}.weight"], ba[f"{row.module}.weight"], update)
        assert row.cosine == pytest.approx(angle, abs=1e-6)
        assert row.norm == pytest.approx(float(update.norm()), rel=1e-5)
        assert row.norm_after == pytest.approx(float(moved.norm()), rel=1e-5)
        assert row.rank == len(before[row.module][0]) == len(after[row.module][0])


@pytest.mark.parametrize("arch", ["gpt2", "opt", "qwen2", "phi3"])
def test_other_architectures(arch, tmp_path):
    aligned, base = save_pair(tmp_path, arch=arch)
    stored = {"fan_in_fan_out": arch == "gpt2", "target_modules": "all-linear"}
    adapter = save_adapter(aligned, tmp_path / "adapter", **stored)
    report = repair(adapter, EVERYTHING, aligned=aligned, base=base, out=tmp_path / "out")
    check(adapter, tmp_path / "out", report, aligned, base, transposed=arch == "gpt2")


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_full_checkpoint_moves_relative_to_aligned(arch, tmp_path):
    """W <- W_aligned + C (W_tuned - W_aligned): lesson 1."""
    aligned, base = save_pair(tmp_path, arch=arch)
    model = noise_(AutoModelForCausalLM.from_pretrained(aligned), 0.02, 5)
    model.save_pretrained(tmp_path / "tuned", max_shard_size="30KB")
    report = repair(tmp_path / "tuned", EVERYTHING, aligned=aligned, base=base, out=tmp_path / "out")
    turn = (lambda w: w.T) if arch == "gpt2" else (lambda w: w)
    start, before, after, old = (weights(f) for f in (aligned, base, tmp_path / "out", tmp_path / "tuned"))
    names = {f"{row.module}.weight" for row in report.modules}
    assert report.changed == len(names) == (14 if arch == "llama" else 8)
    for row in report.modules:
        key = f"{row.module}.weight"
        moved, angle = oracle(turn(start[key]), turn(before[key]), turn(old[key]) - turn(start[key]))
        assert row.cosine == pytest.approx(angle, abs=1e-5)
        torch.testing.assert_close(turn(after[key]).double(), turn(start[key]).double() + moved, rtol=0, atol=1e-6)
    for key in old.keys() - names:
        assert torch.equal(after[key], old[key])
        assert key in report.untouched
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def scores(*cosines):
    return [LayerScore(module=f"m{n}", norm=1.0, cosine=c) for n, c in enumerate(cosines)]


def test_selection():
    few = scores(0.5, 0.2, None, 0.2, 0.9)
    assert SafeLoRA(tau=0.5).select(few) == {"m1", "m3"}  # c < tau, not <=
    assert SafeLoRA(tau=0.0).select(few) == set()
    assert SafeLoRA(k=1).select(few) == {"m1"}  # the tie goes by name
    assert SafeLoRA(k=1).select(few[::-1]) == {"m1"}
    assert SafeLoRA(k=0).select(few) == set()
    assert SafeLoRA(k=4).select(few) == {"m0", "m1", "m3", "m4"}
    assert SafeLoRA(fraction=0.5).select(few) == {"m1", "m3"}
    assert SafeLoRA(fraction=1.0).select(few) == {"m0", "m1", "m3", "m4"}
    with pytest.raises(ConfigError, match="`k` of SafeLoRA must be at most the 4"):
        SafeLoRA(k=5).select(few)


def test_default_is_a_fraction():
    ten = scores(*[0.1 * n for n in range(10)])
    assert SafeLoRA().select(ten) == SafeLoRA(fraction=SafeLoRA.FRACTION).select(ten)
    assert SafeLoRA().parameters()["fraction"] == SafeLoRA.FRACTION
    assert SafeLoRA(tau=0.3).parameters()["fraction"] is None
    assert SafeLoRA.paper().tau == 0.35


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"tau": 0.3, "k": 3}, "one at a time"),
        ({"tau": 1.5}, "`tau` of SafeLoRA must be in 0-1"),
        ({"tau": math.nan}, "`tau`"),
        ({"k": -1}, "`k` of SafeLoRA must be >= 0"),
        ({"fraction": 1.2}, "`fraction` of SafeLoRA must be in 0-1"),
        ({"renorm": "fro"}, "match_fro"),
        ({"by": "null"}, "null_corrected"),
        ({"tau": -1.0, "by": "null_corrected"}, "`tau` of SafeLoRA must be >= 0"),
        ({"rank": 0}, "`rank` of SafeLoRA must be an integer >= 1"),
        ({"ridge": -0.1}, "`ridge` of SafeLoRA must be > 0"),
        ({"rank": 3, "scale_free": True}, "one at a time"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ConfigError, match=message):
        SafeLoRA(**parameters)


def test_one_layer_needs_both_models():
    layer = Layer(module="m", delta=Delta(b=torch.ones(3, 1), a=torch.ones(1, 3)))
    with pytest.raises(NeedsError, match="m: "):
        score_safety(layer)


def test_match_fro_keeps_the_length(trio, tmp_path):
    roles = {"aligned": trio.aligned, "base": trio.base}
    plain = repair(trio.adapter, EVERYTHING, out=tmp_path / "plain", **roles)
    report = repair(trio.adapter, SafeLoRA(fraction=1.0, renorm="match_fro"), out=tmp_path / "long", **roles)
    one, two = factors(tmp_path / "plain"), factors(tmp_path / "long")
    for short, row in zip(plain.modules, report.modules, strict=True):
        assert row.norm_after == pytest.approx(row.norm, rel=1e-5)
        assert short.norm_after < row.norm
        a, b = (torch.nn.functional.normalize(f[row.module][1].flatten(), dim=0) for f in (one, two))
        torch.testing.assert_close(a, b)


def with_b(adapter, out, change):
    """A copy of an adapter with other tensors."""
    out.mkdir()
    (out / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file(change(tensors), out / "adapter_model.safetensors", metadata={"format": "pt"})
    return out


def test_the_gate_does_not_see_signs_but_the_report_does(trio, tmp_path):
    """The update -V undoes the alignment, and its cosine is high."""
    aligned, base = weights(trio.aligned), weights(trio.base)

    def undo(tensors):
        changed = dict(tensors)
        for key in tensors:
            if ".lora_A." in key:
                module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                u, s, vt = torch.linalg.svd(aligned[f"{module}.weight"] - base[f"{module}.weight"], full_matrices=False)
                changed[key] = vt[:4].contiguous()
                changed[key.replace("lora_A", "lora_B")] = -(u[:, :4] * s[:4]).contiguous()
        return changed

    adapter = with_b(trio.adapter, tmp_path / "undo", undo)
    report = repair(adapter, SafeLoRA(tau=0.35), aligned=trio.aligned, base=trio.base, out=tmp_path / "out")
    assert report.changed == 0
    for row in report.modules:
        assert row.cosine > 0.9
        assert row.signed < -0.4
    assert any("away from the alignment" in note for note in report.notes)


def test_gauge_and_scale_do_not_change_the_outcome(trio, tmp_path):
    turn = torch.randn(4, 4, generator=torch.Generator().manual_seed(1)) + 3 * torch.eye(4)

    def regauged(tensors):
        return {
            key: (turn @ value if ".lora_A." in key else -5 * value @ torch.linalg.inv(turn)).contiguous()
            for key, value in tensors.items()
        }

    roles = {"aligned": trio.aligned, "base": trio.base}
    adapter = with_b(trio.adapter, tmp_path / "gauge", regauged)
    one = repair(trio.adapter, SafeLoRA(), out=tmp_path / "one", **roles)
    two = repair(adapter, SafeLoRA(), out=tmp_path / "two", **roles)
    before, after = factors(tmp_path / "one"), factors(tmp_path / "two")
    for a, b in zip(one.modules, two.modules, strict=True):
        assert a.module == b.module
        assert a.cosine == pytest.approx(b.cosine, abs=1e-6)
        assert a.signed == pytest.approx(-b.signed, abs=1e-5)
        assert a.edited == b.edited
        product = [f[a.module][1] @ f[a.module][0] for f in (before, after)]
        torch.testing.assert_close(-5 * product[0], product[1], rtol=1e-4, atol=1e-6)


def test_ill_conditioned_adapter_gives_no_nan(trio, tmp_path):
    def nearly_cancelling(tensors):
        changed = dict(tensors)
        for key, value in tensors.items():
            tiny = 1e-6 * value
            if ".lora_A." in key:
                changed[key] = torch.stack([value[0], value[0], tiny[1], tiny[2]])
            else:
                changed[key] = torch.stack([value[:, 0], -value[:, 0], value[:, 1], tiny[:, 2]], dim=1)
        return changed

    adapter = with_b(trio.adapter, tmp_path / "ill", nearly_cancelling)
    report = repair(adapter, EVERYTHING, aligned=trio.aligned, base=trio.base, out=tmp_path / "out")
    for row in report.modules:
        assert 0 <= row.cosine <= 1
        assert row.norm > 0


def test_a_module_without_safety_vector_is_reported_and_left_alone(trio, tmp_path):
    same = "model.layers.0.mlp.up_proj"
    (tmp_path / "base").mkdir()
    tensors = weights(trio.base) | {f"{same}.weight": weights(trio.aligned)[f"{same}.weight"]}
    save_file(tensors, tmp_path / "base" / "model.safetensors")
    report = repair(trio.adapter, EVERYTHING, aligned=trio.aligned, base=tmp_path / "base", out=tmp_path / "out")
    row = next(row for row in report.modules if row.module == same)
    assert (row.edited, row.cosine, row.null_cosine, row.signed, row.safety_norm) == (False, None, None, None, 0)
    assert "aligned equals base" in row.note
    assert report.changed == 7
    assert torch.equal(factors(tmp_path / "out")[same][1], factors(trio.adapter)[same][1])


def test_vision_language_names_match(trio, tmp_path):
    """The same decoder under `model.language_model.`."""
    for name in ("aligned", "base"):
        (tmp_path / name).mkdir()
        tensors = weights(getattr(trio, name))
        renamed = {k.replace("model.", "model.language_model.", 1): v for k, v in tensors.items()}
        save_file(renamed, tmp_path / name / "model.safetensors")
    roles = {"aligned": tmp_path / "aligned", "base": tmp_path / "base"}
    other = repair(trio.adapter, EVERYTHING, out=tmp_path / "other", **roles)
    plain = repair(trio.adapter, EVERYTHING, aligned=trio.aligned, base=trio.base, out=tmp_path / "plain")
    assert other.modules == plain.modules


def test_wrong_origin_would_be_seen():
    """The tiny base and aligned differ, so that confusing them changes the numbers above."""
    model = tiny_model()
    assert not torch.equal(next(model.parameters()), next(noise_(tiny_model(), 0.01, 7).parameters()))


def spectral(v, f):
    """U f(S) U^T in fp64."""
    u, s, _ = torch.linalg.svd(v.double(), full_matrices=False)
    return u @ f(s).diag() @ u.T


FILTERS = [
    ({"scale_free": True}, lambda s: s**2 / s.max() ** 2),
    ({"rank": 3}, lambda s: (torch.arange(len(s)) < 3).double()),
    ({"ridge": 0.3}, lambda s: s**2 / (s**2 + (0.3 * s.max()) ** 2)),
]


@pytest.mark.parametrize(("filter_", "f"), FILTERS, ids=[next(iter(filter_)) for filter_, _ in FILTERS])
@pytest.mark.parametrize("full", [False, True], ids=["adapter", "checkpoint"])
def test_other_filters(filter_, f, full, trio, tmp_path):
    roles = {"aligned": trio.aligned, "base": trio.base}
    report = repair(trio.adapter, SafeLoRA(fraction=1.0, **filter_), out=tmp_path / "out", merge=full, **roles)
    aligned, base = weights(trio.aligned), weights(trio.base)
    for row in report.modules:
        key = f"{row.module}.weight"
        a, b = factors(trio.adapter)[row.module]
        old = 2 * b.double() @ a.double()
        c = spectral(aligned[key].double() - base[key].double(), f)
        if full:
            new = weights(tmp_path / "out")[key].double() - aligned[key].double()
        else:
            new = 2 * factors(tmp_path / "out")[row.module][1].double() @ a.double()
        torch.testing.assert_close(new, c @ old, rtol=0, atol=2e-6)
        assert row.cosine == pytest.approx(float((c @ old * old).sum() / (c @ old).norm() / old.norm()), abs=1e-4)
        random = torch.randn(len(c), 4000, generator=torch.Generator().manual_seed(1)).double()
        null = float((c @ random * random).sum() / (c @ random).norm() / random.norm())
        assert row.null_cosine == pytest.approx(null, abs=0.1)


@pytest.mark.parametrize("method", [SafeLoRA(fraction=1.0, rank=64), SafeLoRA(fraction=1.0, ridge=1e-5)])
def test_the_exact_projector_changes_nothing_in_square_and_wide_weights(method, trio, tmp_path):
    report = repair(trio.adapter, method, aligned=trio.aligned, base=trio.base, out=tmp_path / "out")
    old, new = factors(trio.adapter), factors(tmp_path / "out")
    for row in report.modules:
        same = torch.allclose(old[row.module][1], new[row.module][1], atol=1e-3)
        assert same == (row.shape[0] <= row.shape[1]), row.module


def test_ridge_too_small_to_solve_is_an_error(trio, tmp_path, monkeypatch):
    monkeypatch.setattr("moored.ops.spectral.SWEEPS", 2)
    with pytest.raises(CheckpointError, match="ridge=0.001 .* raise it"):
        repair(trio.adapter, SafeLoRA(ridge=0.001), aligned=trio.aligned, base=trio.base, out=tmp_path / "out")


def test_corrected_by_what_a_random_update_has():
    scores = [
        LayerScore(module=name, norm=1.0, cosine=c, null_cosine=null)
        for name, c, null in [("a", 0.2, 0.1), ("b", 0.3, 0.6), ("c", 0.9, 0.8), ("d", None, None)]
    ]
    assert SafeLoRA(k=1).select(scores) == {"a"}
    assert SafeLoRA(k=1, by="null_corrected").select(scores) == {"b"}
    assert SafeLoRA(tau=1.5, by="null_corrected").select(scores) == {"b", "c"}


def test_match_spectral_keeps_the_largest_singular_value(trio, tmp_path):
    method = SafeLoRA(fraction=1.0, renorm="match_spectral")
    repair(trio.adapter, method, aligned=trio.aligned, base=trio.base, out=tmp_path / "out")
    old, new = factors(trio.adapter), factors(tmp_path / "out")
    for module in old:
        before, after = (
            torch.linalg.matrix_norm(b.double() @ a.double(), ord=2) for a, b in (old[module], new[module])
        )
        assert float(after) == pytest.approx(float(before), rel=1e-4)


def test_what_to_know_before_use_is_in_the_report_in_its_own_numbers(trio, tmp_path):
    report = repair(trio.adapter, SafeLoRA(k=5), aligned=trio.aligned, base=trio.base, out=tmp_path / "out")
    shapes, lengths, random, signs = report.notes[-4:]
    assert "the identity for the 6 of 8 modules" in shapes  # all but the two up_proj, 64 x 32
    kept = sorted(row.norm_after / row.norm for row in report.modules if row.edited)
    assert f"kept {kept[0]:.1%} to {kept[-1]:.1%} of their length (median {kept[2]:.1%})" in lengths
    null, own = ([getattr(row, name) for row in report.modules] for name in ("null_cosine", "cosine"))
    assert f"a cosine of {statistics.median(null):.3f} here" in random
    assert f"these have {statistics.median(own):.3f}, {sum(map(gt, own, null))} of 8 more" in random
    assert f"{sum(row.signed < 0 for row in report.modules)} of 8 modules point away" in signs
    assert any(row.signed < 0 for row in report.modules)
    card = (tmp_path / "out" / "README.md").read_text()
    assert all(f"- {note}\n" in card for note in report.notes)


FACTS = ["exact projector is the identity", "kept", "a random update already has", "does not see signs"]


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (SafeLoRA(k=0), [FACTS[0], *FACTS[2:]]),
        (SafeLoRA(renorm="match_fro"), [FACTS[0], *FACTS[2:]]),
        (SafeLoRA(rank=4), FACTS[1:]),
        (SafeMERGE(), FACTS[2:]),
        (DropModules(k=2, by="cosine"), FACTS[2:]),
        (DropModules(k=2), []),
    ],
)
def test_facts_are_said_where_they_hold(method, said, trio, tmp_path):
    roles = {"aligned": trio.aligned, "base": trio.base, "safe": trio.safe}
    notes = repair(trio.adapter, method, out=tmp_path / "out", **roles).notes
    assert [fact for fact in FACTS if any(fact in note for note in notes)] == said
