# SPDX-License-Identifier: Apache-2.0
"""Adapters as users bring them: trained in a loop of their own, on wrapped models, with biases."""

import json

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, LlavaConfig

from moored.cli import main
from moored.errors import NeverSupported
from moored.repairs.baselines import ScaleAdapter
from moored.repairs.engine import repair
from moored.repairs.safe_lora import SafeLoRA
from repairs.repair_models import factors, noise_, save_adapter, save_pair, weights


def projected(aligned, base, update):
    """C Delta, dense and in fp64."""
    v = aligned.double() - base.double()
    return v @ v.T / v.norm() @ update.double()


def test_an_adapter_from_a_hand_written_loop(trio, tmp_path):
    """PyTorch and PEFT alone before, PEFT alone after."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(trio.aligned), config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    ids = torch.randint(5, 200, (4, 12))
    losses = []
    for _ in range(30):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
    model.save_pretrained(tmp_path / "adapter")

    models = ["--aligned", str(trio.aligned), "--base", str(trio.base)]
    words = ["repair", str(tmp_path / "adapter"), *models, "--out", str(tmp_path / "out"), "--set", "fraction=0.5"]
    assert main(words) == 0
    edited = {
        row["module"] for row in json.loads((tmp_path / "out/moored.json").read_text())["modules"] if row["edited"]
    }
    old, new = factors(tmp_path / "adapter"), factors(tmp_path / "out")
    assert len(edited) == len(old) / 2 == 3
    for module, (a, b) in old.items():
        v = [weights(folder)[f"{module}.weight"] for folder in (trio.aligned, trio.base)]
        expected = projected(*v, b) if module in edited else b.double()
        torch.testing.assert_close(new[module][1].double(), expected, rtol=0, atol=1e-6)
        assert torch.equal(new[module][0], a)
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        repaired = loaded(input_ids=ids, labels=ids)
    assert repaired.logits.isfinite().all()
    assert losses[-1] < float(repaired.loss)  # half of what it learnt is gone


@pytest.mark.filterwarnings("ignore::peft.utils.warning.PeftWarning")
@pytest.mark.parametrize("targets", ["all-linear", r".*language_model.*\.(q|down)_proj"])
def test_an_adapter_on_a_vision_language_model(targets, tmp_path):
    """Other names on disk than in memory, and modules of the picture's encoder."""
    text = {"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    vision = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 4, "image_size": 8, "patch_size": 4, "projection_dim": 16}
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(LlavaConfig(text_config=text, vision_config=vision))
    model.save_pretrained(tmp_path / "base")
    noise_(model, 0.01, 7).save_pretrained(tmp_path / "aligned")
    start, before = dict(model.state_dict()), load(tmp_path / "base").state_dict()
    peft = get_peft_model(load(tmp_path / "aligned"), LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    peft.save_pretrained(tmp_path / "adapter")
    roles = {"aligned": tmp_path / "aligned", "base": tmp_path / "base"}
    report = repair(tmp_path / "adapter", SafeLoRA(fraction=1.0), out=tmp_path / "out", **roles)
    old, new = (merged(tmp_path / "aligned", tmp_path / name) for name in ("adapter", "out"))
    moved = [key for key in start if not torch.equal(old[key], start[key])]
    assert report.changed == len(report.modules) == len(moved)
    assert any("vision" in key for key in moved) == (targets == "all-linear")
    for key in start:
        expected = start[key].double()
        if key in moved:
            expected = expected + projected(start[key], before[key], old[key] - start[key])
        torch.testing.assert_close(new[key].double(), expected, rtol=0, atol=2e-6)
    repair(tmp_path / "adapter", SafeLoRA(fraction=1.0), out=tmp_path / "full", merge=True, **roles)
    for key, value in load(tmp_path / "full").state_dict().items():
        torch.testing.assert_close(value, new[key], rtol=0, atol=2e-6)


def load(folder):
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)


def merged(aligned, adapter):
    return PeftModel.from_pretrained(load(aligned), adapter).merge_and_unload().state_dict()


@pytest.mark.parametrize("merge", [False, True], ids=["adapter", "merged"])
@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases_are_listed_and_set_back(bias, merge, tmp_path):
    aligned, _ = save_pair(tmp_path, arch="qwen2")
    adapter = save_adapter(aligned, tmp_path / "adapter", bias=bias, target_modules=["q_proj"])
    start = weights(aligned)
    trained = {key for key in start if key.endswith("bias") and (bias == "all" or "q_proj" in key)}
    options = {"aligned": aligned, "merge": merge}
    kept = repair(adapter, ScaleAdapter(scale=0.5), out=tmp_path / "kept", **options)
    back = repair(adapter, ScaleAdapter(scale=0.5), out=tmp_path / "back", revert=True, **options)
    listed = {key.removeprefix("base_model.model.").replace(".base_layer.", ".") for key in kept.untouched}
    assert listed == trained
    assert back.reverted == kept.untouched
    before, after = (in_use(tmp_path / out, aligned) for out in ("kept", "back"))
    for key in trained:
        assert not torch.equal(before[key], start[key])
        assert torch.equal(after[key], start[key])


def in_use(folder, aligned):
    """All weights as a user gets them."""
    if not (folder / "adapter_config.json").exists():
        return AutoModelForCausalLM.from_pretrained(folder).state_dict()
    return (
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(aligned), folder).merge_and_unload().state_dict()
    )


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`", "ignore::UserWarning")
@pytest.mark.parametrize("merge", [False, True], ids=["adapter", "merged"])
def test_trained_tied_embeddings(merge, tmp_path):
    """PEFT saves both of them, where the model's file has one."""
    aligned, base = save_pair(tmp_path, tie_word_embeddings=True)
    config = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    adapter = save_adapter(aligned, tmp_path / "adapter", **config)
    report = repair(adapter, SafeLoRA(fraction=1.0), aligned=aligned, base=base, out=tmp_path / "out", merge=merge)
    assert {key.split(".")[-2] for key in report.untouched} == {"embed_tokens", "lm_head"}
    trained, found = in_use(adapter, aligned), in_use(tmp_path / "out", aligned)
    key = "model.embed_tokens.weight"
    assert not torch.equal(trained[key], weights(aligned)[key])
    assert torch.equal(found[key], trained[key])
    assert torch.equal(found["lm_head.weight"], trained["lm_head.weight"])
    back = repair(adapter, ScaleAdapter(), aligned=aligned, out=tmp_path / "back", merge=merge, revert=True)
    assert set(back.reverted) == set(report.untouched)
    after = in_use(tmp_path / "back", aligned)
    assert torch.equal(after[key], weights(aligned)[key])
    assert torch.equal(after["lm_head.weight"], weights(aligned)[key])


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`", "ignore::UserWarning")
def test_tied_embeddings_that_were_trained_apart_do_not_fit_one_tensor(tmp_path):
    aligned, _ = save_pair(tmp_path, tie_word_embeddings=True)
    config = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    adapter = save_adapter(aligned, tmp_path / "adapter", **config)
    tensors = load_file(adapter / "adapter_model.safetensors")
    key = next(key for key in tensors if "lm_head" in key)
    save_file(tensors | {key: 2 * tensors[key]}, adapter / "adapter_model.safetensors")
    with pytest.raises(NeverSupported, match="ties head and embeddings into one tensor"):
        repair(adapter, ScaleAdapter(), aligned=aligned, merge=True, out=tmp_path / "out")
