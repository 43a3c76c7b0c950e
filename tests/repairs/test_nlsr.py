# SPDX-License-Identifier: Apache-2.0
"""NLSR against stored activations and whole decompositions in fp64."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from moored.data.chat import encode
from moored.data.tiny import tiny_rows, tiny_tokenizer
from moored.errors import ConfigError, NeverSupported, NotYetSupported
from moored.ops.lowrank import product_cosine
from moored.repairs.base import LayerScore
from moored.repairs.engine import repair
from moored.repairs.nlsr import NLSR, critical, directions
from repairs.repair_models import factors, save_adapter, weights

ROWS = tiny_rows(7, "alignment", 2)


def inputs(aligned, module):
    """What goes into a module of the aligned model at the tokens of the answers, one row at a time."""
    model = AutoModelForCausalLM.from_pretrained(aligned).eval()
    seen = []
    model.get_submodule(module).register_forward_pre_hook(lambda m, args: seen.append(args[0][0]))
    tokenizer = tiny_tokenizer()
    with torch.no_grad():
        for row in ROWS:
            encoded = encode(tokenizer, row, max_length=512)
            model(input_ids=torch.tensor([encoded["input_ids"]]))
            seen[-1] = seen[-1][torch.tensor(encoded["labels"]) != -100]
    return torch.cat(seen).double()


def projected(tensor, x, count):
    """A tensor on the principal directions of its outputs."""
    v = torch.linalg.svd(x @ tensor.T, full_matrices=False).Vh[:count]
    return v.T @ v @ tensor


def mask_of(tensor, share):
    """Entries above a quantile, by sorting; all for a share of 1."""
    if share == 1:
        return torch.ones_like(tensor, dtype=torch.bool)
    values = sorted(tensor.abs().flatten().tolist())
    place = (1 - share) * (len(values) - 1)
    low = int(place)
    limit = values[low] + (place - low) * (values[min(low + 1, len(values) - 1)] - values[low])
    return tensor.abs() > limit


def angle(a, b):
    return float((a * b).sum() / a.norm() / b.norm())


def update_reference(trio, module, *, extrapolation, rho, share):
    """The new update, and c."""
    (a, b), (ae, be) = (tuple(t.double() for t in factors(f)[module]) for f in (trio.adapter, trio.safe))
    own, safe = 2 * b @ a, 2 * extrapolation * be @ ae
    mask = mask_of(projected(safe, inputs(trio.aligned, module), int(rho * len(a))), share)
    return torch.where(mask, safe, own), angle(own * mask, safe * mask)


def factor_reference(trio, module, *, extrapolation, rho, share, ratio=1.0, safe=None):
    """The new factors, and c."""
    (a, b), (ae, be) = (tuple(t.double() for t in factors(f)[module]) for f in (trio.adapter, safe or trio.safe))
    x, count = inputs(trio.aligned, module), int(rho * len(a))
    gain = (extrapolation * ratio) ** 0.5
    mask_a, mask_b = mask_of(projected(ae, x, count), share), mask_of(projected(be, x @ ae.T, count), share)
    c = angle((b * mask_b) @ (a * mask_a), (be * mask_b) @ (ae * mask_a))
    return (torch.where(mask_a, gain * ae, a), torch.where(mask_b, gain * be, b)), c


def least(c, fraction):
    return set(sorted(c, key=lambda module: c[module])[: int(fraction * len(c) + 0.5)])


SETTINGS = [
    {"extrapolation": 3.24, "rho": 0.8, "share": 0.2},
    {"extrapolation": 1.0, "rho": 0.5, "share": 0.35},
    {"extrapolation": 1.0, "rho": 1.0, "share": 1.0},
]


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_update_gets_the_critical_entries(setting, trio, tmp_path):
    method = NLSR(**setting, fraction=0.4)
    report = repair(trio.adapter, method, aligned=trio.aligned, safe=trio.safe, alignment=ROWS, merge=True,
                    out=tmp_path / "out")  # fmt: skip
    expected = {module: update_reference(trio, module, **setting) for module in factors(trio.adapter)}
    chosen = least({module: c for module, (_, c) in expected.items()}, 0.4)
    assert {row.module for row in report.modules if row.edited} == chosen
    start, after = weights(trio.aligned), weights(tmp_path / "out")
    for row in report.modules:
        new, c = expected[row.module]
        assert row.signed == pytest.approx(c, abs=1e-5)
        if row.module not in chosen:
            a, b = factors(trio.adapter)[row.module]
            new = 2 * b.double() @ a.double()
        key = f"{row.module}.weight"
        torch.testing.assert_close(after[key].double() - start[key].double(), new, rtol=0, atol=1e-6)


@pytest.mark.parametrize("setting", SETTINGS)
def test_factors_get_the_critical_entries(setting, trio, tmp_path):
    method = NLSR(**setting, fraction=0.4, space="factors")
    report = repair(trio.adapter, method, aligned=trio.aligned, safe=trio.safe, alignment=ROWS, out=tmp_path / "out")
    expected = {module: factor_reference(trio, module, **setting) for module in factors(trio.adapter)}
    chosen = least({module: c for module, (_, c) in expected.items()}, 0.4)
    assert {row.module for row in report.modules if row.edited} == chosen
    assert {row.module: row.signed for row in report.modules} == pytest.approx(
        {module: c for module, (_, c) in expected.items()}, abs=1e-5
    )
    old, new = factors(trio.adapter), factors(tmp_path / "out")
    for module in old:
        wanted = expected[module][0] if module in chosen else old[module]
        for found, one in zip(new[module], wanted, strict=True):
            torch.testing.assert_close(found.double(), one.double(), rtol=0, atol=1e-6)


def test_factors_on_another_scale_make_the_same_product(trio, tmp_path):
    """The tuned adapter multiplies with 2, the safe one with 3: its factors are given the difference."""
    safe = save_adapter(trio.aligned, tmp_path / "safe", seed=6, lora_alpha=12)
    method = NLSR(extrapolation=1.5, fraction=1.0, space="factors")
    repair(trio.adapter, method, aligned=trio.aligned, safe=safe, alignment=ROWS, out=tmp_path / "out")
    for module, (a, b) in factors(tmp_path / "out").items():
        (wanted_a, wanted_b), _ = factor_reference(
            trio, module, extrapolation=1.5, rho=0.8, share=0.2, ratio=1.5, safe=safe
        )
        torch.testing.assert_close(a.double(), wanted_a, rtol=0, atol=1e-6)
        torch.testing.assert_close(b.double(), wanted_b, rtol=0, atol=1e-6)
    whole = NLSR(extrapolation=1.5, fraction=1.0, share=1.0, space="factors")
    repair(trio.adapter, whole, aligned=trio.aligned, safe=safe, alignment=ROWS, out=tmp_path / "whole")
    for module, (a, b) in factors(tmp_path / "whole").items():
        ae, be = factors(safe)[module]
        torch.testing.assert_close(2 * b @ a, 1.5 * 3 * be @ ae, rtol=0, atol=1e-6)


def turned(folder, out, seed):
    """The same updates from other factors: B G^-1 and G A."""
    out.mkdir()
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(folder / "adapter_model.safetensors")
    for key in [key for key in tensors if ".lora_A." in key]:
        g = torch.linalg.qr(torch.randn(4, 4, generator=generator).double()).Q @ torch.diag(
            torch.tensor([0.5, 1.0, 2.0, 3.0]).double()
        )
        other = key.replace(".lora_A.", ".lora_B.")
        tensors[key] = (g @ tensors[key].double()).float().contiguous()
        tensors[other] = (tensors[other].double() @ torch.linalg.inv(g)).float().contiguous()
    save_file(tensors, out / "adapter_model.safetensors")
    (out / "adapter_config.json").write_text((folder / "adapter_config.json").read_text())
    return out


def test_the_update_does_not_depend_on_how_it_is_factored(trio, tmp_path):
    """Entries of factors do: that is why "update" is the default."""
    tuned, safe = turned(trio.adapter, tmp_path / "tuned", 1), turned(trio.safe, tmp_path / "safe", 2)
    roles = {"aligned": trio.aligned, "alignment": ROWS}
    for space in ("update", "factors"):
        method = NLSR(fraction=1.0, space=space)
        for name, own, other in (("plain", trio.adapter, trio.safe), ("turned", tuned, safe)):
            repair(own, method, safe=other, merge=True, out=tmp_path / space / name, **roles)
        plain, other = weights(tmp_path / space / "plain"), weights(tmp_path / space / "turned")
        worst = max(float((plain[key] - other[key]).abs().max()) for key in plain)
        if space == "update":
            assert worst < 1e-5
        else:
            assert worst > 0.1


def test_other_ranks_have_no_factors_in_common(trio, tmp_path):
    safe = save_adapter(trio.aligned, tmp_path / "safe", seed=6, r=6)
    roles = {"aligned": trio.aligned, "safe": safe, "alignment": ROWS}
    with pytest.raises(NeverSupported, match='has rank 4 and that of the safe adapter 6.*space="update"'):
        repair(trio.adapter, NLSR(space="factors"), out=tmp_path / "out", **roles)
    assert not (tmp_path / "out").exists()
    report = repair(trio.adapter, NLSR(fraction=1.0), merge=True, out=tmp_path / "out", **roles)
    assert report.changed == len(report.modules)


def test_what_cannot_be_compared_is_refused_or_left_alone(trio, tmp_path):
    roles = {"aligned": trio.aligned, "alignment": ROWS}
    with pytest.raises(NotYetSupported, match="`safe` is a full model"):
        repair(trio.adapter, NLSR(), safe=trio.base, merge=True, out=tmp_path / "out", **roles)
    with pytest.raises(NeverSupported, match='has no factors to mix; take NLSR\\(space="update"\\)'):
        repair(trio.base, NLSR(space="factors"), safe=trio.safe, out=tmp_path / "out", **roles)
    with pytest.raises(NeverSupported, match="--merge"):
        repair(trio.adapter, NLSR(), safe=trio.safe, out=tmp_path / "out", **roles)
    some = save_adapter(trio.aligned, tmp_path / "some", seed=6, target_modules=["q_proj"])
    report = repair(trio.adapter, NLSR(fraction=1.0), safe=some, merge=True, out=tmp_path / "out", **roles)
    assert {row.module for row in report.modules if row.edited} == set(factors(some))
    report = repair(trio.base, NLSR(fraction=1.0), safe=trio.safe, out=tmp_path / "full", **roles)
    assert {row.module for row in report.modules if row.edited} == set(factors(trio.safe))


def test_a_safe_adapter_that_does_nothing_has_no_critical_entries(trio, tmp_path):
    nothing = save_adapter(trio.aligned, tmp_path / "nothing", size=0.0)
    for space in ("update", "factors"):
        report = repair(trio.adapter, NLSR(fraction=1.0, space=space), aligned=trio.aligned, safe=nothing,
                        alignment=ROWS, merge=True, out=tmp_path / space)  # fmt: skip
        assert report.changed == 0


def test_choices():
    cosines = {"a": 0.9, "b": -0.5, "c": 0.1, "d": 0.4, "e": None, "f": 0.0}
    scores = [LayerScore(module=m, norm=1.0, signed=c) for m, c in cosines.items()]
    assert NLSR().select(scores) == {"b", "f", "c"}
    assert NLSR(k=1).select(scores) == {"b"}
    assert NLSR(tau=0.05).select(scores) == {"b", "f"}
    assert NLSR(fraction=1.0, epsilon=0.0).select(scores) == set("abcdf")
    assert NLSR(fraction=0.5, epsilon=0.5).select(scores) >= {"b"}  # the least similar, surely
    assert "a" not in NLSR(fraction=0.5, epsilon=0.5).select(scores)
    many = [LayerScore(module=f"{i:04}", norm=1.0, signed=-i / 1000) for i in range(1000)]
    drawn = NLSR.paper().select(many)
    assert drawn == NLSR.paper().select(many[::-1]) != NLSR(fraction=0.5, epsilon=0.2).select(many)
    similar, different = (sum(f"{i:04}" in drawn for i in part) / 200 for part in (range(200), range(800, 1000)))
    assert similar == pytest.approx(0.34, abs=0.1)
    assert different == pytest.approx(0.66, abs=0.1)


def test_small_matrices_say_what_large_ones_would():
    generator = torch.Generator().manual_seed(4)
    b1, b2 = (torch.randn(9, 3, generator=generator) for _ in range(2))
    a1, a2 = (torch.randn(3, 7, generator=generator) for _ in range(2))
    assert product_cosine(b1, a1, b2, a2) == pytest.approx(angle(b1 @ a1, b2 @ a2), abs=1e-6)
    assert product_cosine(b1, a1, -2 * b1, a1) == pytest.approx(-1.0)
    assert product_cosine(0 * b1, a1, b2, a2) == 0.0
    assert product_cosine(b1, a1, b2, 0 * a2) is None
    x = torch.randn(50, 7, generator=generator).double()
    z = x @ a1.double().T
    u = directions(b1.double(), z.T @ z, 2)
    v = torch.linalg.svd(z @ b1.double().T, full_matrices=False).Vh[:2]
    torch.testing.assert_close(u @ u.T, v.T @ v)
    for share in (0.0, 0.2, 0.5, 0.9):
        mask = critical(b1, share)
        assert torch.equal(mask, b1.abs() > b1.abs().flatten().quantile(1 - share))


def test_parameters_and_their_record(trio, tmp_path):
    report = repair(trio.adapter, NLSR.paper(), aligned=trio.aligned, safe=trio.safe, alignment=ROWS,
                    out=tmp_path / "out")  # fmt: skip
    saved = json.loads((tmp_path / "out" / "moored.json").read_text())
    assert saved["parameters"]["epsilon"] == 0.2
    assert report.rows["alignment"]["rows"] == 7
    assert NLSR().parameters()["fraction"] == 0.5
    assert NLSR(k=2).parameters()["fraction"] is None
    for idle in (NLSR(share=0.0), NLSR(k=0), NLSR(fraction=0.0)):
        assert not idle.needs()
    assert NLSR(fraction=0.0, epsilon=0.1).needs()
    for kwargs, message in [
        ({"k": 1, "tau": 0.1}, "one at a time"),
        ({"extrapolation": 0.0}, "`extrapolation` of NLSR must be > 0"),
        ({"rho": 0.0}, "`rho` of NLSR must be in 0-1, above 0"),
        ({"share": 1.1}, "`share` of NLSR must be in 0-1"),
        ({"tau": -2.0}, "`tau` of NLSR must be in -1 to 1"),
        ({"epsilon": 2.0}, "`epsilon` of NLSR must be in 0-1"),
        ({"epsilon": 0.2, "k": 1}, "`epsilon` of NLSR must be given with `fraction` alone"),
        ({"space": "weights"}, "`space` of NLSR must be one of update, factors"),
    ]:
        with pytest.raises(ConfigError, match=message):
            NLSR(**kwargs)
