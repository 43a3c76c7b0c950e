# SPDX-License-Identifier: Apache-2.0
"""PEFT adapter folders: the scales are PEFT's own, and what is not B A is refused."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file

from moored.data.tiny import tiny_model
from moored.errors import CheckpointError, NeedsError, NeverSupported, NotYetSupported
from moored.hf.adapters import is_adapter, read_adapter


def save(out, **config):
    """An adapter from plain PEFT."""
    model = get_peft_model(tiny_model(), LoraConfig(**{"r": 4, "target_modules": ["q_proj", "down_proj"], **config}))
    model.save_pretrained(out)


@pytest.fixture
def plain(tmp_path):
    save(tmp_path / "adapter")
    return tmp_path / "adapter"


def edit_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def edit_tensors(folder, change):
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)
    return folder


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"lora_alpha": 3},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"layers\.1\.mlp\.down_proj": 5, "down_proj": 7}},
        {"rank_pattern": {r".*\.0\..*proj": 3, "q_proj": 2}, "alpha_pattern": {".*proj": 9, "q_proj": 1}},
        {"rank_pattern": {"^model.layers.1.self_attn.q_proj": 6}, "use_rslora": True},
        {"init_lora_weights": False},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "eva"},
        {"target_modules": "all-linear"},
    ],
)
@pytest.mark.filterwarnings("ignore:.*\\beva\\b")
def test_scales_and_factors_are_those_of_peft(config, tmp_path):
    """As PEFT loads them: it saves patterns in alphabetical order, and the first one that matches counts."""
    save(tmp_path / "adapter", **config)
    adapter = read_adapter(tmp_path / "adapter")
    model = PeftModel.from_pretrained(tiny_model(), tmp_path / "adapter").base_model.model
    layers = {name: module for name, module in model.named_modules() if "default" in getattr(module, "lora_A", ())}
    assert adapter.modules.keys() == layers.keys()
    for name, module in adapter.modules.items():
        b, a = module.factors()
        assert module.scale == layers[name].scaling["default"]
        assert module.rank == layers[name].r["default"]
        assert module.shape == tuple(layers[name].weight.shape)
        assert torch.equal(a, layers[name].lora_A["default"].weight)
        assert torch.equal(b, layers[name].lora_B["default"].weight)
    assert adapter.untouched == ()
    assert is_adapter(tmp_path / "adapter")
    assert all(file.exists() for file in adapter.files)


def test_everything_else_is_listed(tmp_path):
    save(tmp_path / "adapter", modules_to_save=["norm"], bias="all", use_rslora=True)
    assert "base_model.model.model.norm.weight" in read_adapter(tmp_path / "adapter").untouched


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"use_dora": True}, NeverSupported, "DoRA"),
        ({"lora_bias": True}, NotYetSupported, "`lora_bias`"),
        ({"init_lora_weights": "pissa"}, NotYetSupported, "'pissa', which changes the base weights"),
        ({"init_lora_weights": "pissa_niter_2"}, NotYetSupported, "changes the base weights"),
        ({"init_lora_weights": "olora"}, NotYetSupported, "changes the base weights"),
        ({"layer_replication": [[0, 2], [1, 2]]}, NotYetSupported, "`layer_replication`"),
        ({"target_modules": [], "target_parameters": ["q_proj.weight"]}, NeedsError, "give `aligned`"),
    ],
)
@pytest.mark.filterwarnings("ignore::peft.utils.warning.PeftWarning")
def test_kinds_where_b_a_is_not_the_update(config, error, message, tmp_path):
    save(tmp_path / "adapter", **config)
    with pytest.raises(error, match=message):
        read_adapter(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_lora_weights": "corda"}, "changes the base weights"),
        ({"init_lora_weights": "lora_ga"}, "changes the base weights"),
        ({"init_lora_weights": "loftq"}, "changes the base weights"),
        ({"init_lora_weights": "OLoRA"}, "changes the base weights"),
        ({"init_lora_weights": "mica"}, "'mica', which is untested"),
        ({"alora_invocation_tokens": [1, 2]}, "activated LoRA"),
        ({"use_qalora": True}, "`use_qalora`"),
        ({"use_bdlora": {"nblocks": 2}}, "`use_bdlora`"),
        ({"peft_type": "LOHA"}, "LOHA adapter; only LORA"),
        ({"r": 5}, "the config says rank 5"),
    ],
)
def test_kinds_seen_in_the_config(changes, message, plain):
    with pytest.raises((NeverSupported, NotYetSupported, CheckpointError), match=message):
        read_adapter(edit_config(plain, **changes))


def test_kinds_seen_in_the_tensors_only(plain):
    """A config that lost its `use_dora`."""
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"
    with pytest.raises(NeverSupported, match="DoRA"):
        read_adapter(edit_tensors(plain, lambda tensors: {**tensors, key: torch.ones(32)}))


def test_unknown_lora_tensors_are_not_passed_over(plain):
    with pytest.raises(NotYetSupported, match="q_proj.lora_diag"):
        read_adapter(edit_tensors(plain, lambda tensors: {**tensors, "q_proj.lora_diag": torch.ones(4)}))


def test_incomplete_factors(plain):
    def without_b(tensors):
        return {key: value for key, value in tensors.items() if "layers.1.self_attn.q_proj.lora_B" not in key}

    with pytest.raises(CheckpointError, match="layers.1.self_attn.q_proj has only lora_A"):
        read_adapter(edit_tensors(plain, without_b))


def test_nan(plain):
    def poisoned(tensors):
        key = next(key for key in tensors if "layers.1" in key and "lora_B" in key)
        tensors[key][0, 0] = float("nan")
        return tensors

    adapter = read_adapter(edit_tensors(plain, poisoned))
    broken = next(module for name, module in adapter.modules.items() if "layers.1" in name)
    with pytest.raises(CheckpointError, match="lora_B.weight in .* has NaN or infinite values"):
        broken.factors()


def test_broken_folders(plain, tmp_path):
    (plain / "adapter_model.safetensors").write_bytes(b"123")
    with pytest.raises(CheckpointError, match="truncated or corrupt"):
        read_adapter(plain)
    (plain / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="does not exist"):
        read_adapter(plain)
    (plain / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"pickled adapter_model\.bin"):
        read_adapter(plain)
    (plain / "adapter_config.json").unlink()
    assert not is_adapter(plain)
    with pytest.raises(CheckpointError, match="cannot read"):
        read_adapter(plain)


def test_other_peft_methods(tmp_path):
    model = get_peft_model(tiny_model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(NotYetSupported, match="PROMPT_TUNING adapter; only LORA"):
        read_adapter(tmp_path / "adapter")


def test_nothing_to_repair(plain):
    config = {"base_model.model.model.norm.weight": torch.ones(32)}
    with pytest.raises(CheckpointError, match="no LoRA factors"):
        read_adapter(edit_tensors(plain, lambda _: config))
