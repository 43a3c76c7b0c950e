# SPDX-License-Identifier: Apache-2.0
"""What a repair takes: types of numbers, tied embeddings, wrapped models; each against the formula in dense fp64."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from moored.errors import CheckpointError, NotYetSupported
from moored.repairs.csu_lora import CSULoRA
from moored.repairs.engine import repair
from moored.repairs.lox_repair import LoXRepair
from moored.repairs.safe_lora import SafeLoRA
from repairs.repair_models import factors, save_adapter, save_pair, weights

METHODS = [
    SafeLoRA(fraction=1.0),
    SafeLoRA(fraction=1.0, rank=4),
    CSULoRA(rank=4),
    CSULoRA(rank=4, sides="both"),
    LoXRepair(k=2),
]
NAMES = ["safe_lora", "safe_lora rank", "csu_lora", "csu_lora both", "lox"]


def retyped(adapter, out, dtype):
    """A copy of an adapter in another type."""
    out.mkdir()
    (out / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    tensors = {key: value.to(dtype) for key, value in load_file(adapter / "adapter_model.safetensors").items()}
    save_file(tensors, out / "adapter_model.safetensors")
    return out


@pytest.mark.parametrize("merge", [False, True], ids=["adapter", "merged"])
@pytest.mark.parametrize("method", METHODS, ids=NAMES)
@pytest.mark.parametrize("tuned", [torch.float32, torch.bfloat16, torch.float16], ids=["32", "b16", "16"])
@pytest.mark.parametrize("model", [torch.float32, torch.bfloat16, torch.float16], ids=["32", "b16", "16"])
def test_types_of_numbers(model, tuned, method, merge, tmp_path):
    """The result is that of the same numbers in fp32, rounded once."""
    aligned, base = save_pair(tmp_path / "models", dtype=model)
    adapter = save_adapter(aligned, tmp_path / "fp32", target_modules=["q_proj", "down_proj"])
    short = retyped(adapter, tmp_path / "short", tuned)
    wide = retyped(short, tmp_path / "wide", torch.float32)
    for name, folder in (("aligned", aligned), ("base", base)):
        (tmp_path / name).mkdir()
        save_file({k: v.float() for k, v in weights(folder).items()}, tmp_path / name / "model.safetensors")
    roles = {"aligned": tmp_path / "aligned", "base": tmp_path / "base", "merge": merge}
    exact = repair(wide, method, out=tmp_path / "exact", **roles)
    report = repair(short, method, out=tmp_path / "out", merge=merge, aligned=aligned, base=base)
    assert report.changed == exact.changed == 4
    kept = weights(aligned if merge else short)
    found, expected = weights(tmp_path / "out"), weights(tmp_path / "exact")
    assert found.keys() == expected.keys() == kept.keys()
    for key, value in expected.items():
        assert found[key].dtype == kept[key].dtype
        step = torch.finfo(found[key].dtype).eps
        torch.testing.assert_close(found[key].float(), value.float(), rtol=2 * step, atol=2e-6 + step * 1e-3)


def test_tied_embeddings(tmp_path):
    """One tensor on disk for two uses: it is no linear layer, and it stays one tensor."""
    aligned, base = save_pair(tmp_path, tie_word_embeddings=True)
    assert "lm_head.weight" not in weights(aligned)
    adapter = save_adapter(aligned, tmp_path / "adapter", target_modules="all-linear")
    method = SafeLoRA(fraction=1.0)
    assert repair(adapter, method, aligned=aligned, base=base, out=tmp_path / "one").changed == 14
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(aligned), adapter).merge_and_unload()
    with torch.no_grad():
        merged.model.embed_tokens.weight.add_(0.1)
    merged.save_pretrained(tmp_path / "tuned")
    report = repair(tmp_path / "tuned", method, aligned=aligned, base=base, out=tmp_path / "two")
    assert (report.changed, report.untouched) == (14, ("model.embed_tokens.weight",))
    assert weights(tmp_path / "two").keys() == weights(aligned).keys()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "two")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model.", ""])
@pytest.mark.parametrize("where", ["adapter", "models", "both"])
def test_wrapped_names_match(where, prefix, trio, tmp_path):
    """The same decoder inside of a vision-language model, or alone."""

    def renamed(folder, out, old):
        out.mkdir()
        name = "adapter_model.safetensors" if "base_model" in old else "model.safetensors"
        tensors = {
            key.replace(old, old.removesuffix("model.") + prefix, 1): t for key, t in load_file(folder / name).items()
        }
        save_file(tensors, out / name)
        if "base_model" in old:
            (out / "adapter_config.json").write_bytes((folder / "adapter_config.json").read_bytes())
        return out

    tuned, aligned, base = trio.adapter, trio.aligned, trio.base
    if where != "models":
        tuned = renamed(trio.adapter, tmp_path / "adapter", "base_model.model.model.")
    if where != "adapter":
        aligned, base = (renamed(f, tmp_path / f.name, "model.") for f in (aligned, base))
    report = repair(tuned, SafeLoRA(), aligned=aligned, base=base, out=tmp_path / "out")
    plain = repair(trio.adapter, SafeLoRA(), aligned=trio.aligned, base=trio.base, out=tmp_path / "plain")
    assert [row.cosine for row in report.modules] == [row.cosine for row in plain.modules]
    assert [row.edited for row in report.modules] == [row.edited for row in plain.modules]


def test_two_decoders_in_one_model_are_ambiguous(trio, tmp_path):
    (tmp_path / "aligned").mkdir()
    tensors = weights(trio.aligned)
    twice = {
        f"{prefix}{k.removeprefix('model.')}": v.clone()
        for k, v in tensors.items()
        for prefix in ("language_model.", "transformer.")
    }
    save_file(twice, tmp_path / "aligned" / "model.safetensors")
    with pytest.raises(CheckpointError, match="is ambiguous"):
        repair(trio.adapter, SafeLoRA(), aligned=tmp_path / "aligned", base=trio.base, out=tmp_path / "out")


@pytest.mark.parametrize("shape", ["same", "packed"])
@pytest.mark.parametrize("where", ["aligned", "base"])
def test_quantised_models_are_refused(where, shape, trio, tmp_path):
    """FP8 in the shape of the weight, and four bits packed into bytes."""
    (tmp_path / where).mkdir()
    tensors = weights(getattr(trio, where))
    key = "model.layers.1.self_attn.q_proj.weight"
    tensors[key] = tensors[key].to(torch.float8_e4m3fn) if shape == "same" else torch.zeros(512, 1, dtype=torch.uint8)
    save_file(tensors, tmp_path / where / "model.safetensors")
    roles = {"aligned": trio.aligned, "base": trio.base, where: tmp_path / where}
    with pytest.raises(NotYetSupported, match=f"{key} .* give the checkpoint before quantisation"):
        repair(trio.adapter, SafeLoRA(), out=tmp_path / "out", **roles)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("merge", [False, True], ids=["adapter", "merged"])
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_modules_to_save_stay_with_any_repair(merge, tmp_path):
    aligned, base = save_pair(tmp_path)
    config = {"target_modules": r".*\.(q|v)_proj", "modules_to_save": ["lm_head", "norm"], "use_rslora": True}
    adapter = save_adapter(aligned, tmp_path / "adapter", **config)
    roles = {"aligned": aligned, "base": base, "merge": merge}
    report = repair(adapter, CSULoRA(rank=4), out=tmp_path / "out", **roles)
    norms = {"norm", "input_layernorm", "post_attention_layernorm"}  # PEFT compares ends of names
    assert {name.split(".")[-2] for name in report.untouched} == {"lm_head", *norms}
    start = AutoModelForCausalLM.from_pretrained(aligned)
    if merge:
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    else:
        model = PeftModel.from_pretrained(start, tmp_path / "out").merge_and_unload().state_dict()
        assert factors(tmp_path / "out").keys() == factors(adapter).keys()
        saved = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
        assert saved["modules_to_save"] == ["lm_head", "norm"]
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(aligned), adapter).merge_and_unload()
    for key, value in tuned.state_dict().items():
        if "lm_head" in key or key == "model.norm.weight":
            assert torch.equal(model[key], value)
            assert not torch.equal(model[key], weights(aligned)[key])
