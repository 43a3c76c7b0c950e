# SPDX-License-Identifier: Apache-2.0
"""Adapters that are written as full models: what PEFT merges, DoRA and whole trained modules included."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from moored.errors import NeedsError, NeverSupported, NotYetSupported
from moored.repairs.baselines import ScaleAdapter
from moored.repairs.engine import repair
from moored.repairs.lox_repair import LoXRepair
from moored.repairs.safe_lora import SafeLoRA
from repairs.repair_models import save_adapter, save_pair, weights

CONV = ["c_attn", "c_proj"]


def merged_by_peft(aligned, adapter):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(aligned, dtype=torch.float32), adapter)
    return model.merge_and_unload().state_dict()


@pytest.mark.parametrize(
    ("arch", "config"),
    [
        ("llama", {}),
        ("llama", {"use_dora": True}),
        ("llama", {"use_dora": True, "use_rslora": True}),
        ("llama", {"modules_to_save": ["embed_tokens", "norm"]}),
        ("gpt2", {"target_modules": CONV, "fan_in_fan_out": True}),
        ("gpt2", {"target_modules": CONV, "fan_in_fan_out": True, "use_dora": True}),
    ],
)
def test_merging_is_that_of_peft(arch, config, tmp_path):
    aligned, _ = save_pair(tmp_path, arch=arch)
    adapter = save_adapter(aligned, tmp_path / "adapter", **config)
    report = repair(adapter, ScaleAdapter(scale=1.0), aligned=aligned, merge=True, out=tmp_path / "out")
    assert report.changed == 0
    expected = merged_by_peft(aligned, adapter)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert loaded.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(loaded[key], value, rtol=0, atol=1e-5)
    moved = [key for key, value in weights(tmp_path / "out").items() if not torch.equal(value, weights(aligned)[key])]
    assert moved


def test_a_dora_adapter_can_be_repaired_while_it_is_merged(tmp_path):
    aligned, base = save_pair(tmp_path)
    adapter = save_adapter(aligned, tmp_path / "adapter", use_dora=True)
    with pytest.raises(NeverSupported, match="--merge"):
        repair(adapter, SafeLoRA(), aligned=aligned, base=base, out=tmp_path / "out")
    repair(adapter, SafeLoRA(fraction=1.0), aligned=aligned, base=base, merge=True, out=tmp_path / "out")
    full, start, before = merged_by_peft(aligned, adapter), weights(aligned), weights(base)
    for key, value in weights(tmp_path / "out").items():
        if not torch.equal(full[key], start[key]):
            v = start[key].double() - before[key].double()
            expected = start[key] + v @ v.T / v.norm() @ (full[key].double() - start[key].double())
            torch.testing.assert_close(value.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("merge", [False, True], ids=["adapter", "merged"])
@pytest.mark.parametrize("method", [ScaleAdapter(scale=0.5), LoXRepair(k=1)], ids=["same", "more"])
def test_what_a_repair_leaves_can_be_set_back(method, merge, tmp_path):
    aligned, base = save_pair(tmp_path)
    adapter = save_adapter(aligned, tmp_path / "adapter", modules_to_save=["norm"], bias="none")
    roles = {"aligned": aligned, "base": base, "merge": merge}
    kept = repair(adapter, method, out=tmp_path / "kept", **roles)
    assert any("norm.weight" in name for name in kept.untouched)
    assert any("--revert" in note for note in kept.notes)
    back = repair(adapter, method, out=tmp_path / "back", revert=True, **roles)
    assert back.reverted == kept.untouched
    assert back.untouched == ()
    assert back.changed == kept.changed + len(back.reverted)
    before, after, start = loaded(tmp_path / "kept", aligned), loaded(tmp_path / "back", aligned), weights(aligned)
    assert before.keys() == after.keys()
    for key in start:
        if "norm" in key:
            assert not torch.equal(before[key], start[key])
            assert torch.equal(after[key], start[key])
        else:
            assert torch.equal(before[key], after[key])


def loaded(folder, aligned):
    """All weights as a user of the output gets them."""
    if (folder / "adapter_config.json").exists():
        return merged_by_peft(aligned, folder)
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_adapted_embeddings_and_tuned_norms_are_set_back(tmp_path):
    aligned, base = save_pair(tmp_path)
    adapter = save_adapter(aligned, tmp_path / "adapter", target_modules=["embed_tokens", "q_proj"])
    repair(adapter, ScaleAdapter(scale=0.5), aligned=aligned, revert=True, out=tmp_path / "out")
    embedded = merged_by_peft(aligned, tmp_path / "out")["model.embed_tokens.weight"]
    torch.testing.assert_close(embedded, weights(aligned)["model.embed_tokens.weight"])
    report = repair(base, SafeLoRA(), aligned=aligned, base=base, revert=True, out=tmp_path / "full")
    assert {"model.norm.weight", "model.embed_tokens.weight"} <= set(report.reverted)
    for key in report.reverted:
        assert torch.equal(weights(tmp_path / "full")[key], weights(aligned)[key])


def test_types_and_shards_are_those_of_the_aligned_model(tmp_path):
    aligned, _ = save_pair(tmp_path, dtype=torch.bfloat16, shards="30KB")
    adapter = save_adapter(aligned, tmp_path / "adapter")
    repair(adapter, ScaleAdapter(scale=0.5), aligned=aligned, merge=True, out=tmp_path / "out")
    names = {f.name for f in aligned.iterdir()}
    assert names <= {f.name for f in (tmp_path / "out").iterdir()}
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    assert {t.dtype for t in weights(tmp_path / "out").values()} == {torch.bfloat16}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out")


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_what_has_no_place_in_the_model_is_refused(tmp_path):
    aligned, _ = save_pair(tmp_path)
    with pytest.raises(NeedsError, match="give `aligned`"):
        repair(save_adapter(aligned, tmp_path / "a"), ScaleAdapter(), merge=True, out=tmp_path / "out")
    embeddings = save_adapter(aligned, tmp_path / "b", target_modules=["embed_tokens", "q_proj"])
    with pytest.raises(NotYetSupported, match="embed_tokens.* has no counterpart"):
        repair(embeddings, ScaleAdapter(), aligned=aligned, merge=True, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
