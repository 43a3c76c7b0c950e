# SPDX-License-Identifier: Apache-2.0
"""Laws of every repair in the catalogue (design.md, section 3)."""

import json
from hashlib import sha256

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from moored.errors import NeedsError, NeverSupported
from moored.method import Need
from moored.repairs.engine import repair
from repairs.repair_cases import (
    ADDING,
    MIXING,
    REPAIRS,
    active,
    every,
    everything,
    models,
    on_model,
    rows,
    run,
    updates,
)
from repairs.repair_models import digests, factors, save_adapter, save_pair, weights


@every
def test_acts_and_says_so(name, trio, tmp_path):
    report = run(trio, active(name), tmp_path / "out")
    before, after = updates(trio.adapter, trio), updates(tmp_path / "out", trio)
    moved = {m for m in before if not torch.allclose(before[m], after[m], atol=1e-6)}
    assert moved
    assert report.changed == len(moved)
    assert {row.module for row in report.modules if row.edited} == moved
    if active(name).form == "same":
        old, new = factors(trio.adapter), factors(tmp_path / "out")
        assert {m: a.shape for m, (a, _) in old.items()} == {m: a.shape for m, (a, _) in new.items()}


@every
def test_inputs_stay_as_they_are(name, trio, tmp_path):
    before = digests(trio.adapter, *models(trio).values())
    report = run(trio, active(name), tmp_path / "out")
    assert digests(trio.adapter, *models(trio).values()) == before
    assert report.inputs.items() <= before.items()
    assert any(path.endswith("adapter_model.safetensors") for path in report.inputs)
    for file, read in report.tensors.items():
        held = load_file(file)
        assert read == {key: sha256(held[key].view(torch.uint8).numpy()).hexdigest() for key in read}


@every
def test_null_parameters_change_nothing_and_say_so(name, trio, tmp_path):
    null = REPAIRS[name].info.null
    if name in MIXING:
        pytest.skip("mixes two updates at any setting")
    assert null, f"{name} must name the parameters at which it does nothing"
    method = REPAIRS[name](**null)
    report = run(trio, method, tmp_path / "out")
    assert report.changed == 0
    assert not any(row.edited for row in report.modules)
    if method.form == "dense":
        torch.testing.assert_close(updates(tmp_path / "out", trio), updates(trio.adapter, trio), rtol=0, atol=1e-6)
        return
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "out" / file).read_bytes() == (trio.adapter / file).read_bytes()


@every
def test_zero_delta_is_a_fixed_point(name, trio, tmp_path):
    if name in ADDING:
        pytest.skip("adds more than the update has")
    save_adapter(trio.aligned, tmp_path / "zero", size=0.0)
    report = run(trio, active(name), tmp_path / "out", tmp_path / "zero")
    assert report.changed == 0
    like = trio.aligned if active(name).form == "dense" else tmp_path / "zero"
    assert load_bytes(tmp_path / "out") == load_bytes(like)


@every
def test_zero_delta_of_a_full_checkpoint_is_a_fixed_point(name, trio, tmp_path):
    if name in ADDING:
        pytest.skip("adds more than the update has")
    report = repair(trio.aligned, on_model(active(name)), out=tmp_path / "out", **everything(trio))
    assert report.changed == 0
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (trio.aligned / "model.safetensors").read_bytes()


def load_bytes(folder):
    return b"".join(file.read_bytes() for file in sorted(folder.glob("*.safetensors")))


@every
def test_output_loads_in_plain_peft(name, trio, tmp_path):
    report = run(trio, active(name), tmp_path / "out")
    after = updates(tmp_path / "out", trio)
    assert {row.module: row.norm_after for row in report.modules} == pytest.approx(
        {module: float(update.norm()) for module, update in after.items()}, rel=1e-3
    )
    if active(name).form != "dense":
        assert AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")


@every
def test_adapter_path_equals_merged_path(name, trio, tmp_path):
    """The repaired adapter, merged, is the repaired merged model; so is the adapter repaired while it is merged."""
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(trio.aligned), trio.adapter)
    merged.merge_and_unload().save_pretrained(tmp_path / "merged")
    method = active(name)
    report = run(trio, method, tmp_path / "adapter")
    method = same_choice(method, report)
    repair(trio.adapter, method, out=tmp_path / "at once", merge=True, **everything(trio))
    expected = updates(tmp_path / "adapter", trio)
    torch.testing.assert_close(updates(tmp_path / "at once", trio), expected, rtol=0, atol=1e-5)
    if on_model(method) == method:  # else what it does to factors has no counterpart in a matrix
        repair(tmp_path / "merged", method, out=tmp_path / "full", **everything(trio))
        torch.testing.assert_close(updates(tmp_path / "full", trio), expected, rtol=0, atol=1e-5)


def same_choice(method, report):
    """A full checkpoint has more modules than an adapter: name a number of them instead of a share."""
    if "k" in method.parameters() and "fraction" in method.parameters():
        return type(method)(k=report.changed)
    return method


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shards_and_key_order_do_not_matter(name, dtype, tmp_path):
    """Position means nothing: shuffled keys, other shards, the same result."""
    aligned, base = save_pair(tmp_path / "one", dtype=dtype)
    adapter = save_adapter(aligned, tmp_path / "adapter")
    more = {
        "unaligned": save_adapter(aligned, tmp_path / "u", seed=5),
        "safe": save_adapter(aligned, tmp_path / "s", seed=6),
    }
    more |= {"merge": active(name).form == "dense", **rows()}
    repair(adapter, active(name), aligned=aligned, base=base, out=tmp_path / "plain", **more)
    sharded, _ = save_pair(tmp_path / "two", dtype=dtype, shards="30KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    tensors = load_file(base / "model.safetensors")
    (tmp_path / "shuffled").mkdir()
    names = sorted(tensors, key=lambda key: hash_of(key))
    save_file({key.removeprefix("model."): tensors[key] for key in names}, tmp_path / "shuffled" / "model.safetensors")
    repair(adapter, active(name), aligned=sharded, base=tmp_path / "shuffled", out=tmp_path / "other", **more)
    plain, other = weights(tmp_path / "plain"), weights(tmp_path / "other")
    assert plain.keys() == other.keys()
    assert all(torch.equal(plain[key], other[key]) for key in plain)


def hash_of(key):
    return sum(ord(c) * 31**i for i, c in enumerate(key)) % 1009


@every
def test_a_missing_role_is_named(name, trio, tmp_path):
    for need in REPAIRS[name].info.needs:
        roles = {k: v for k, v in everything(trio).items() if k != need}
        with pytest.raises(NeedsError, match=f"`{need}`"):
            repair(trio.adapter, active(name), out=tmp_path / "out", merge=active(name).form == "dense", **roles)
    roles = {k: v for k, v in everything(trio).items() if k != "aligned"}
    with pytest.raises(NeedsError, match="`aligned`"):
        repair(trio.aligned, on_model(active(name)), out=tmp_path / "out", **roles)
    assert not list(tmp_path.iterdir())


@every
def test_equal_models_are_refused(name, trio, tmp_path):
    if Need.BASE not in REPAIRS[name].info.needs:
        pytest.skip("compares no models")
    for aligned, base in [(trio.aligned, trio.aligned), (trio.aligned, copied(trio.aligned, tmp_path / "copy"))]:
        roles = {"safe": trio.safe, "merge": active(name).form == "dense"}
        with pytest.raises(NeverSupported, match="aligned - base"):
            repair(trio.adapter, active(name), aligned=aligned, base=base, out=tmp_path / "out", **roles)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def copied(folder, out):
    out.mkdir()
    for file in folder.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    return out


@every
def test_report_is_complete_json(name, trio, tmp_path):
    method = active(name)
    report = run(trio, method, tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "moored.json").read_text())
    assert saved == json.loads(json.dumps(report.record()))
    assert saved["method"] == name
    assert saved["parameters"].keys() == method.parameters().keys()
    assert len(saved["modules"]) == len(factors(trio.adapter))
    assert name in (tmp_path / "out" / "README.md").read_text()


@every
def test_is_a_function_of_its_inputs(name, trio, tmp_path):
    for out in ("one", "two"):
        run(trio, active(name), tmp_path / out)
    assert load_bytes(tmp_path / "one") == load_bytes(tmp_path / "two")


@every
@pytest.mark.parametrize("kind", ["adapter", "checkpoint"])
def test_what_is_left_untouched_is_listed_and_can_be_set_back(name, kind, trio, tmp_path):
    if kind == "adapter":
        tuned, method = save_adapter(trio.aligned, tmp_path / "adapter", modules_to_save=["norm"]), active(name)
    else:
        tuned, method = trio.base, on_model(active(name))
    options = {"merge": kind == "adapter" and method.form == "dense", **everything(trio)}
    kept = repair(tuned, method, out=tmp_path / "kept", **options)
    back = repair(tuned, method, out=tmp_path / "back", revert=True, **options)
    old, start = in_use(tuned, trio), weights(trio.aligned)
    before, after = in_use(tmp_path / "kept", trio), in_use(tmp_path / "back", trio)
    edited = {f"{row.module}.weight" for row in kept.modules} | {row.module for row in kept.modules}
    trained = {key for key in start if not torch.equal(old[key], start[key])}
    left = trained - edited
    assert {key.removeprefix("base_model.model.") for key in kept.untouched} == left
    assert bool(left) or method.every_tensor
    assert (back.untouched, back.reverted) == ((), kept.untouched)
    for key in start:
        assert torch.equal(before[key], old[key]) or key in edited
        assert torch.equal(after[key], start[key] if key in left else before[key])


def in_use(folder, trio):
    """All weights as a user of a folder gets them from plain PEFT and transformers."""
    if not (folder / "adapter_config.json").exists():
        return AutoModelForCausalLM.from_pretrained(folder).state_dict()
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(trio.aligned), folder)
    return model.merge_and_unload().state_dict()


@every
def test_an_interruption_leaves_nothing(name, trio, tmp_path):
    def stop(done, total, what):
        if what == "edit":
            raise KeyboardInterrupt

    before, method = digests(trio.adapter, *models(trio).values()), active(name)
    options = {"merge": method.form == "dense", "progress": stop, **everything(trio)}
    with pytest.raises(KeyboardInterrupt):
        repair(trio.adapter, method, out=tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())
    assert digests(trio.adapter, *models(trio).values()) == before


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@every
@pytest.mark.parametrize("device", [None, pytest.param("cuda", marks=NO_GPU)])
def test_where_it_is_computed_does_not_matter(name, device, trio, tmp_path):
    """By default it is the GPU if there is one; a rounded sum may decide otherwise about single numbers there."""
    here = run(trio, active(name), tmp_path / "cpu", device="cpu")
    there = run(trio, active(name), tmp_path / "other", device=device)
    assert here.device == "cpu"
    assert there.device == (device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if there.device == "cpu":
        assert load_bytes(tmp_path / "cpu") == load_bytes(tmp_path / "other")
    for module, update in updates(tmp_path / "cpu", trio).items():
        assert torch.linalg.norm(updates(tmp_path / "other", trio)[module] - update) <= 0.01 * update.norm()
