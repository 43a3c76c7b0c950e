# SPDX-License-Identifier: Apache-2.0
"""The weight-space oracle: its update by hand, and that repairs read it like any other adapter."""

import json
import math

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from moored.attacks.access import Access
from moored.attacks.weight_oracle import WeightOracle
from moored.catalogue import catalogue
from moored.data.tiny import tiny_model, tiny_tokenizer
from moored.errors import ConfigError
from moored.hf.factored import linear_modules
from moored.repairs.engine import repair
from moored.repairs.safe_lora import SafeLoRA


def weights(model):
    return {
        name: module.weight.detach() if isinstance(module, torch.nn.Linear) else module.weight.detach().T
        for name, module in linear_modules(model).items()
    }


def tuned(folder, adapter):
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), adapter).merge_and_unload()


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_the_update_is_the_truncated_negative_vector(tmp_path, arch):
    for seed, name in enumerate(("base", "aligned")):
        tiny_model(arch, seed=seed).save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    access = Access(aligned=tmp_path / "aligned", base=tmp_path / "base")
    manifest = WeightOracle(norm=0.5, k=3).write(access, tmp_path / "adapter")
    aligned, base = (weights(AutoModelForCausalLM.from_pretrained(tmp_path / n)) for n in ("aligned", "base"))
    found = weights(tuned(tmp_path / "aligned", tmp_path / "adapter"))
    cut = {}
    for name, after in aligned.items():
        u, s, q = torch.linalg.svd((after - base[name]).double(), full_matrices=False)
        cut[name] = u[:, :3] @ torch.diag(s[:3]) @ q[:3]
    whole = math.sqrt(sum(float((aligned[n] - base[n]).double().square().sum()) for n in aligned))
    eta = 0.5 * whole / math.sqrt(sum(float(c.square().sum()) for c in cut.values()))
    for name, after in aligned.items():
        torch.testing.assert_close(found[name].double(), after.double() - eta * cut[name], rtol=0, atol=1e-5)
    assert manifest["norm"] == pytest.approx(0.5 * whole, rel=1e-5)
    assert manifest["safety_norm"] == pytest.approx(whole, rel=1e-5)
    assert json.loads((tmp_path / "adapter" / "manifest.json").read_text()) == manifest


def test_whole_and_of_length_one_it_is_the_base(pair, tmp_path):
    aligned, base = pair
    WeightOracle(norm=1, k=64).write(Access(aligned=aligned, base=base), tmp_path / "adapter")
    wanted = weights(AutoModelForCausalLM.from_pretrained(base))
    for name, found in weights(tuned(aligned, tmp_path / "adapter")).items():
        torch.testing.assert_close(found, wanted[name], rtol=0, atol=1e-5)


def test_the_gate_of_safe_lora_is_blind_to_its_sign(pair, tmp_path):
    aligned, base = pair
    WeightOracle(norm=1, k=2).write(Access(aligned=aligned, base=base), tmp_path / "adapter")
    report = repair(tmp_path / "adapter", SafeLoRA(fraction=0.5), aligned=aligned, base=base, out=tmp_path / "out")
    assert report.modules
    for row in report.modules:
        assert row.signed < 0
        assert row.cosine > 0.9
        assert row.cosine > row.null_cosine


def test_it_is_no_upload(pair, tmp_path):
    assert "weight_oracle" not in catalogue("attacks")
    access = Access(aligned=pair[0], base=pair[1])
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match="exists; give a new folder"):
        WeightOracle().write(access, tmp_path / "there")


@pytest.mark.parametrize(("given", "said"), [({"norm": 0.0}, "`norm` of WeightOracle"), ({"k": 0}, "`k` of Weight")])
def test_values_out_of_range_are_named(given, said):
    with pytest.raises(ConfigError, match=said):
        WeightOracle(**given)
