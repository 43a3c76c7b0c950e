# SPDX-License-Identifier: Apache-2.0
"""A patch on the tuned model is the repaired model."""

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from moored.data.tiny import tiny_model, tiny_rows
from moored.errors import CheckpointError, ConfigError
from moored.hf.patch import apply_patch
from moored.repairs.baselines import DropModules
from moored.repairs.dare import DARE
from moored.repairs.engine import repair
from moored.repairs.recover import Recover
from repairs.repair_models import save_adapter, save_pair, weights


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_patched_is_repaired(arch, tmp_path):
    aligned, _ = save_pair(tmp_path, arch=arch)
    config = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True} if arch == "gpt2" else {}
    adapter = save_adapter(aligned, tmp_path / "adapter", **config)
    report = repair(adapter, DARE(drop=0.02), aligned=aligned, merge=True, patch=True, out=tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(aligned)
    model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    count = apply_patch(model, tmp_path / "out" / "patch.safetensors")
    after, own = weights(tmp_path / "out"), model.state_dict()
    after = {key: tensor for key, tensor in after.items() if not key.endswith((":positions", ":values"))}
    for key, tensor in after.items():
        torch.testing.assert_close(own[key], tensor, rtol=0, atol=1e-6)
    assert 0 < count <= sum(row.shape[0] * row.shape[1] for row in report.modules)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_a_patch_of_few_numbers_is_small(tmp_path):
    """Only what a repair edits is in it: here one module of a full model, in bf16."""
    aligned, base = save_pair(tmp_path, dtype=torch.bfloat16)
    report = repair(base, DropModules(k=1), aligned=aligned, patch=True, out=tmp_path / "out")
    held = load_file(tmp_path / "out" / "patch.safetensors")
    (edited,) = [row for row in report.modules if row.edited]
    assert held.keys() == {f"{edited.module}.weight:positions", f"{edited.module}.weight:values"}
    assert held[f"{edited.module}.weight:values"].dtype == torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    assert apply_patch(model, tmp_path / "out" / "patch.safetensors") == len(held[f"{edited.module}.weight:values"])
    start = weights(aligned)[f"{edited.module}.weight"].float()
    assert torch.equal(model.state_dict()[f"{edited.module}.weight"], start)


def test_the_patch_of_recover_holds_what_it_restores(trio, tmp_path):
    rows = {"harmful": tiny_rows(5, "harmful"), "calibration": tiny_rows(5)}
    method = Recover(rho=0.002, steps=2, metric_drop=1.0)
    report = repair(trio.adapter, method, aligned=trio.aligned, merge=True, patch=True, out=tmp_path / "out", **rows)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(trio.aligned), trio.adapter)
    model = model.merge_and_unload()
    count = apply_patch(model, tmp_path / "out" / "patch.safetensors")
    assert f"restored {count} numbers" in report.notes[-1]
    assert count <= 2 * (1 + 0.002 * sum(p.numel() for p in model.model.layers.parameters()))


def test_experts_that_share_a_tensor(tmp_path):
    """Positions are those in the whole tensor, not in the expert."""
    shape = (3, 4, 5)
    generator = torch.Generator().manual_seed(0)
    names = ["model.layers.0.mlp.experts.down_proj"]
    for name, size in (("aligned", 0.0), ("tuned", 0.1)):
        (tmp_path / name).mkdir()
        tensor = torch.ones(shape) + size * torch.randn(shape, generator=generator)
        save_file({names[0]: tensor}, tmp_path / name / "model.safetensors")
    report = repair(
        tmp_path / "tuned", DropModules(k=1), aligned=tmp_path / "aligned", patch=True, out=tmp_path / "out"
    )
    assert report.changed == 1
    held = load_file(tmp_path / "out" / "patch.safetensors")
    tensor = load_file(tmp_path / "tuned" / "model.safetensors")[names[0]].clone()
    tensor.view(-1)[held[f"{names[0]}:positions"].long()] = held[f"{names[0]}:values"]
    assert torch.equal(tensor, load_file(tmp_path / "out" / "model.safetensors")[names[0]])


def test_what_cannot_be_patched_is_said(trio, tmp_path):
    with pytest.raises(ConfigError, match="merge=True"):
        repair(trio.adapter, DropModules(k=1), out=tmp_path / "out", patch=True)
    repair(trio.base, DropModules(k=1), aligned=trio.aligned, patch=True, out=tmp_path / "out")
    other = tiny_model(hidden_size=64)
    before = {key: tensor.clone() for key, tensor in other.state_dict().items()}
    with pytest.raises(CheckpointError, match="which this one has not"):
        apply_patch(other, tmp_path / "out" / "patch.safetensors")
    assert all(torch.equal(tensor, before[key]) for key, tensor in other.state_dict().items())
    with pytest.raises(CheckpointError, match="is no patch"):
        apply_patch(other, trio.aligned / "model.safetensors")
