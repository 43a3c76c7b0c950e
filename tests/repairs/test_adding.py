# SPDX-License-Identifier: Apache-2.0
"""Repairs that add other models' updates, against dense sums in fp64 and against PEFT's own merges."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from moored.errors import CheckpointError, ConfigError, NeverSupported
from moored.ops.truncation import leading
from moored.repairs.dare import DARE
from moored.repairs.engine import repair
from moored.repairs.lox_repair import LoXRepair
from moored.repairs.resta import RESTA
from moored.repairs.safe_lora import SafeLoRA
from moored.repairs.safe_merge import SafeMERGE
from moored.repairs.task_arithmetic import TaskArithmetic
from moored.repairs.ties import TIES
from repairs.repair_models import factors, save_adapter, weights


def deltas(folder, aligned):
    """Updates by module as PEFT computes them."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(aligned), folder).base_model.model
    return {m: model.get_submodule(m).get_delta_weight("default").double() for m in factors(folder)}


def safety(trio, module):
    """V of a module in fp64."""
    pair = (weights(folder)[f"{module}.weight"].double() for folder in (trio.aligned, trio.base))
    return next(pair) - next(pair)


SHAPES = [
    {},
    {"r": 2, "lora_alpha": 6},
    {"use_rslora": True},
    {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"up_proj": 5}},
]


@pytest.mark.parametrize("twin", SHAPES)
@pytest.mark.parametrize("own", SHAPES)
def test_resta_is_the_exact_sum(own, twin, trio, tmp_path):
    tuned = save_adapter(trio.aligned, tmp_path / "tuned", **own)
    unaligned = save_adapter(trio.aligned, tmp_path / "twin", seed=9, **twin)
    report = repair(tuned, RESTA(gamma=0.7), unaligned=unaligned, out=tmp_path / "out")
    assert report.changed == len(report.modules)
    before, subtracted = deltas(tuned, trio.aligned), deltas(unaligned, trio.aligned)
    for module, after in deltas(tmp_path / "out", trio.aligned).items():
        torch.testing.assert_close(after, before[module] - 0.7 * subtracted[module], rtol=0, atol=1e-6)


def test_one_rank_and_one_alpha_for_programs_that_read_no_patterns(trio, tmp_path):
    tuned = save_adapter(trio.aligned, tmp_path / "tuned", use_rslora=True)
    repair(tuned, LoXRepair(k=2), aligned=trio.aligned, base=trio.base, out=tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {t.shape[0] for key, t in tensors.items() if "lora_A" in key} == {6}
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["r"] == 6
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert config["lora_alpha"] == pytest.approx(8 / 4**0.5 * 6**0.5)


def test_a_twin_that_was_not_tuned_on_a_module_has_nothing_to_subtract_there(trio, tmp_path):
    twin = save_adapter(trio.aligned, tmp_path / "twin", target_modules=["q_proj"])
    report = repair(trio.adapter, RESTA(), unaligned=twin, out=tmp_path / "out")
    assert {row.module for row in report.modules if row.edited} == {m for m in factors(trio.adapter) if "q_proj" in m}
    other = save_adapter(trio.aligned, tmp_path / "other", target_modules=["k_proj"])
    with pytest.raises(CheckpointError, match="none of the modules"):
        repair(trio.adapter, RESTA(), unaligned=other, out=tmp_path / "out2")


def test_a_full_twin_needs_merging(trio, tmp_path):
    with pytest.raises(NeverSupported, match="--merge"):
        repair(trio.adapter, RESTA(), aligned=trio.aligned, unaligned=trio.base, out=tmp_path / "out")
    repair(trio.adapter, RESTA(gamma=1.0), aligned=trio.aligned, unaligned=trio.base, merge=True, out=tmp_path / "out")
    before, after = deltas(trio.adapter, trio.aligned), weights(tmp_path / "out")
    for module, delta in before.items():
        start = weights(trio.aligned)[f"{module}.weight"].double()
        expected = start + delta + safety(trio, module)
        torch.testing.assert_close(after[f"{module}.weight"].double(), expected, rtol=0, atol=1e-6)


def test_safe_merge_mixes_the_modules_that_safe_lora_would_project(trio, tmp_path):
    models = {"aligned": trio.aligned, "base": trio.base}
    gate = repair(trio.adapter, SafeLoRA(k=3), out=tmp_path / "gate", **models)
    repair(trio.adapter, SafeMERGE(k=3, weight=0.3), safe=trio.safe, out=tmp_path / "out", **models)
    tuned, safe = deltas(trio.adapter, trio.aligned), deltas(trio.safe, trio.aligned)
    chosen = {row.module for row in gate.modules if row.edited}
    for module, after in deltas(tmp_path / "out", trio.aligned).items():
        mixed = 0.7 * tuned[module] + 0.3 * safe[module]
        torch.testing.assert_close(after, mixed if module in chosen else tuned[module], rtol=0, atol=1e-6)


def test_linear_safe_merge_is_that_of_peft(trio, tmp_path):
    repair(trio.adapter, SafeMERGE(fraction=1.0, how="linear"), aligned=trio.aligned, base=trio.base, safe=trio.safe,
           out=tmp_path / "out")  # fmt: skip
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(trio.aligned), trio.adapter)
    model.load_adapter(trio.safe, "safe")
    model.add_weighted_adapter(["default", "safe"], [0.8, 0.2], "both", combination_type="linear")
    for module, after in deltas(tmp_path / "out", trio.aligned).items():
        expected = model.base_model.model.get_submodule(module).get_delta_weight("both").double()
        torch.testing.assert_close(after, expected, rtol=0, atol=1e-6)
    other = save_adapter(trio.aligned, tmp_path / "other", r=2)
    with pytest.raises(NeverSupported, match="one rank; got 4 and 2"):
        repair(trio.adapter, SafeMERGE(fraction=1.0, how="linear"), aligned=trio.aligned, base=trio.base, safe=other,
               out=tmp_path / "out2")  # fmt: skip


def test_lox_adds_the_first_directions_of_the_alignment(trio, tmp_path):
    repair(trio.adapter, LoXRepair(k=3, alpha=1.5), aligned=trio.aligned, base=trio.base, out=tmp_path / "out")
    before = deltas(trio.adapter, trio.aligned)
    for module, after in deltas(tmp_path / "out", trio.aligned).items():
        u, s, vh = torch.linalg.svd(safety(trio, module))
        expected = before[module] + 1.5 * u[:, :3] @ s[:3].diag() @ vh[:3]
        torch.testing.assert_close(after, expected, rtol=0, atol=1e-6)


def test_task_arithmetic_adds_all_of_it(trio, tmp_path):
    method = TaskArithmetic(lam=0.25)
    with pytest.raises(NeverSupported, match="--merge"):
        repair(trio.adapter, method, aligned=trio.aligned, base=trio.base, out=tmp_path / "out")
    repair(trio.adapter, method, aligned=trio.aligned, base=trio.base, merge=True, out=tmp_path / "out")
    before, after = deltas(trio.adapter, trio.aligned), weights(tmp_path / "out")
    for module, delta in before.items():
        expected = weights(trio.aligned)[f"{module}.weight"].double() + delta + 0.25 * safety(trio, module)
        torch.testing.assert_close(after[f"{module}.weight"].double(), expected, rtol=0, atol=1e-6)


def merged(trio, method, out):
    """The new updates by module."""
    repair(trio.adapter, method, aligned=trio.aligned, safe=trio.safe, merge=True, out=out)
    start, after = weights(trio.aligned), weights(out)
    return {m: after[f"{m}.weight"].double() - start[f"{m}.weight"].double() for m in factors(trio.adapter)}


def test_dare_drops_entries_and_keeps_the_mean(trio, tmp_path):
    before, after = deltas(trio.adapter, trio.aligned), merged(trio, DARE(drop=0.75), tmp_path / "out")
    dropped = []
    for module, delta in after.items():
        gone = delta.abs() < 1e-7
        torch.testing.assert_close(delta[~gone], 4 * before[module][~gone], rtol=0, atol=1e-6)
        dropped.append(gone.flatten())
    assert torch.cat(dropped).double().mean() == pytest.approx(0.75, abs=0.02)
    again, other = (merged(trio, DARE(drop=0.75, seed=s), tmp_path / str(s)) for s in (0, 1))
    assert all(torch.equal(after[m], again[m]) for m in after)
    assert not any(torch.equal(after[m], other[m]) for m in after)
    one, two = list(after)[:2]
    assert not torch.equal(after[one].abs() < 1e-7, after[two].abs() < 1e-7), "every module has a mask of its own"


def test_ties_entry_by_entry(trio, tmp_path):
    tuned, safe = deltas(trio.adapter, trio.aligned), deltas(trio.safe, trio.aligned)
    for module, after in merged(trio, TIES(density=0.3, lam=0.8), tmp_path / "out").items():
        expected = torch.zeros_like(after)
        taus = []
        for delta in (tuned[module], safe[module]):
            count = int(0.3 * delta.numel() + 0.5)
            least = sorted(delta.abs().flatten().tolist())[-count]
            taus.append(torch.where(delta.abs() >= least, delta, 0.0))
        for i in range(after.shape[0]):
            for j in range(after.shape[1]):
                values = [float(tau[i, j]) for tau in taus]
                same = [v for v in values if v * sum(values) > 0]
                expected[i, j] = 0.8 * sum(same) / len(same) if same else 0.0
        torch.testing.assert_close(after, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (5, 60), (60, 60)])
@pytest.mark.parametrize("exact", [True, False])
def test_leading_directions_are_those_of_the_decomposition(shape, exact, monkeypatch):
    monkeypatch.setattr("moored.ops.truncation.EXACT_SIDE", 1024 if exact else 1)
    generator = torch.Generator().manual_seed(2)
    matrix = torch.randn(*shape, generator=generator).double() @ torch.diag(0.8 ** torch.arange(shape[1])).double()
    left, right = leading(matrix.float(), 4)
    u, s, vh = torch.linalg.svd(matrix)
    torch.testing.assert_close((left @ right).double(), u[:, :4] @ s[:4].diag() @ vh[:4], rtol=0, atol=2e-5)
    torch.testing.assert_close(right @ right.T, torch.eye(4), rtol=0, atol=1e-4)


def test_bad_parameters():
    for make, message in [
        (lambda: RESTA(gamma=-1.0), "`gamma` of RESTA must be >= 0"),
        (lambda: TaskArithmetic(lam=-1.0), "`lam` of TaskArithmetic"),
        (lambda: DARE(drop=1.0), "`drop` of DARE must be in 0-1, below 1"),
        (lambda: TIES(density=0.0), "`density` of TIES must be in 0-1, above 0"),
        (lambda: TIES(lam=-1.0), "`lam` of TIES"),
        (lambda: LoXRepair(k=0), "`k` of LoXRepair must be an integer >= 1"),
        (lambda: LoXRepair(alpha=-1.0), "`alpha` of LoXRepair"),
        (lambda: SafeMERGE(weight=2.0), "`weight` of SafeMERGE must be in 0-1"),
        (lambda: SafeMERGE(how="svd"), "`how` of SafeMERGE must be one of cat, linear"),
        (lambda: SafeMERGE(tau=0.3, k=2), "one at a time"),
    ]:
        with pytest.raises(ConfigError, match=message):
            make()
