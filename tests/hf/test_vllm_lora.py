# SPDX-License-Identifier: Apache-2.0
"""What a repair's report says of vLLM, for the adapters on which vLLM's own code was run."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from moored.catalogue import catalogue
from moored.hf.vllm_lora import remark
from moored.repairs.engine import repair
from repairs.repair_models import save_adapter, save_pair

pytestmark = pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")  # PEFT's, while it saves


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    aligned, _ = save_pair(root)
    return root, aligned


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, ""),
        ({"use_rslora": True}, ""),
        ({"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}}, ""),
        ({"target_modules": "all-linear"}, ""),
        ({"target_modules": ["q_proj", "embed_tokens"]}, ""),
        ({"r": 16}, ""),
        ({"r": 17}, "vLLM loads adapters of this rank with `--max-lora-rank 32`"),
        ({"rank_pattern": {"q_proj": 40}}, "vLLM loads adapters of this rank with `--max-lora-rank 64`"),
        ({"modules_to_save": ["norm"]}, "does not load this adapter: it holds `norm` as a whole (`modules_to_save`). "),
        ({"bias": "lora_only"}, "does not load this adapter: it holds biases (`bias: lora_only`). Merged"),
    ],
)
def test_what_the_report_says(config, said, models, tmp_path):
    _, aligned = models
    save_adapter(aligned, tmp_path / "adapter", **config)
    report = repair(
        tmp_path / "adapter", catalogue("repairs")["scale_adapter"](), aligned=aligned, out=tmp_path / "out"
    )
    found = [note for note in report.notes if "vLLM" in note]
    assert len(found) == bool(said)
    assert all(said in note for note in found)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"lora_bias": True}, "`lora_bias`"),
        ({"init_lora_weights": "pissa_niter_4"}, "`pissa_niter_4`, which changes the model itself"),
        ({"init_lora_weights": "gaussian"}, ""),
        ({"r": 600}, "its rank is 600, and 512 is the most"),
    ],
)
def test_features_by_the_configuration(config, said, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, **config}))
    save_file({"base_model.model.a.lora_A.weight": torch.ones(1, 1)}, tmp_path / "adapter_model.safetensors")
    assert said in remark(tmp_path)
    assert bool(said) == bool(remark(tmp_path))


def test_a_tensor_that_nothing_names(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4}))
    save_file({"base_model.model.a.token_deltas": torch.ones(1, 1)}, tmp_path / "adapter_model.safetensors")
    assert "it holds `base_model.model.a.token_deltas`, which is no factor" in remark(tmp_path)


def test_a_full_model_is_served_like_any_other(models):
    assert remark(models[1]) == ""


@pytest.mark.parametrize("scales", [{}, {"alpha_pattern": {"embed_tokens": 6, "q_proj": 2}}, {"use_rslora": True}])
def test_factors_of_an_embedding_keep_their_rank_where_others_grow(scales, models, tmp_path):
    """PEFT reads one rank for all modules without a pattern, and then could not load them."""
    _, aligned = models
    adapter = save_adapter(aligned, tmp_path / "adapter", target_modules=["q_proj", "embed_tokens"], **scales)
    twin = save_adapter(aligned, tmp_path / "twin", seed=9, target_modules=["q_proj"])
    report = repair(adapter, catalogue("repairs")["resta"](), aligned=aligned, unaligned=twin, out=tmp_path / "out")
    assert report.changed
    old, new = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, tmp_path / "out"))
    key = "base_model.model.model.embed_tokens.lora_embedding_A"
    assert torch.equal(old[key], new[key])

    def embedding(folder):
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(aligned), folder)
        return model.merge_and_unload().get_input_embeddings().weight

    torch.testing.assert_close(embedding(tmp_path / "out"), embedding(adapter), rtol=0, atol=0)
    start = AutoModelForCausalLM.from_pretrained(aligned).get_input_embeddings().weight
    assert not torch.allclose(embedding(adapter), start, atol=1e-3)
