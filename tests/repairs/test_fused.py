# SPDX-License-Identifier: Apache-2.0
"""Several layers in one tensor: fused attention weights, and experts as PEFT merges them, each with a V of its own."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from moored.errors import CheckpointError, ConfigError, NeedsError, NotYetSupported
from moored.hf.fused import pieces
from moored.repairs.base import LayerScore
from moored.repairs.baselines import ScaleAdapter
from moored.repairs.csu_lora import CSULoRA
from moored.repairs.engine import repair
from moored.repairs.lox_repair import LoXRepair
from moored.repairs.safe_lora import SafeLoRA
from repairs.repair_models import noise_, save_adapter, save_pair, weights

pytestmark = pytest.mark.filterwarnings(
    "ignore::peft.utils.warning.PeftWarning", "ignore:The following .* keys did not match"
)
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def safe_lora(update, v):
    """C Delta, dense and in fp64."""
    v = v.double()
    return v @ v.T / v.norm() @ update.double()


def merged(aligned, adapter):
    """All weights as PEFT merges them, under their names in memory."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(aligned, dtype=torch.float32), adapter)
    return model.merge_and_unload().state_dict()


def in_memory(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()


# --- fused attention -------------------------------------------------------------------------------------------------

FUSED = {
    "phi3": (["qkv_proj", "gate_up_proj"], {"qkv_proj": [32, 16, 16], "gate_up_proj": [64, 64]}, [32, 16, 16]),
    "gpt2": (["c_attn"], {"c_attn": [32, 32, 32]}, [32, 32, 32]),
}


@pytest.mark.parametrize("kind", ["adapter", "merged", "checkpoint"])
@pytest.mark.parametrize("arch", FUSED)
def test_parts_of_fused_weights_are_not_coupled(arch, kind, tmp_path):
    targets, sizes, _ = FUSED[arch]
    aligned, base = save_pair(tmp_path, arch=arch)
    config = {"target_modules": targets, "fan_in_fan_out": arch == "gpt2", "use_dora": kind == "merged"}
    adapter = save_adapter(aligned, tmp_path / "adapter", **config)
    start, before, old = in_memory(aligned), in_memory(base), merged(aligned, adapter)
    tuned, merge = adapter, kind == "merged"
    if kind == "checkpoint":
        model = AutoModelForCausalLM.from_pretrained(aligned)
        model.load_state_dict(old)
        model.save_pretrained(tmp_path / "tuned")
        tuned = tmp_path / "tuned"
    method = SafeLoRA(fraction=1.0, split="auto")
    report = repair(tuned, method, aligned=aligned, base=base, out=tmp_path / "out", merge=merge)
    new = in_memory(tmp_path / "out") if kind != "adapter" else merged(aligned, tmp_path / "out")
    turn = (lambda w: w.T) if arch == "gpt2" else (lambda w: w)
    rows = {row.module: row for row in report.modules}
    for key in (k for k in start if k.split(".")[-2] in sizes and k.endswith("weight")):
        first = 0
        for size in sizes[key.split(".")[-2]]:
            part = slice(first, first + size)
            update, v = (turn(x[key])[part].double() - turn(start[key])[part].double() for x in (old, before))
            expected = turn(start[key])[part] + safe_lora(update, v)
            torch.testing.assert_close(turn(new[key])[part].double(), expected, rtol=0, atol=2e-6)
            row = rows[f"{key.removesuffix('.weight')}[{first}:{first + size}]"]
            assert row.edited
            assert row.shape == (size, 32)
            first += size
    whole = repair(tuned, SafeLoRA(fraction=1.0), aligned=aligned, base=base, out=tmp_path / "whole", merge=merge)
    assert len(whole.modules) < len(rows)
    changed = [k for k in new if not torch.equal(new[k], start[k])]
    other = in_memory(tmp_path / "whole") if kind != "adapter" else merged(aligned, tmp_path / "whole")
    assert any(not torch.allclose(new[k], other[k], atol=1e-5) for k in changed), "the coupling would be seen"


@pytest.mark.parametrize("arch", FUSED)
def test_sizes_say_the_same_as_the_config(arch, tmp_path):
    targets, _, sizes = FUSED[arch]
    aligned, base = save_pair(tmp_path, arch=arch)
    config = {"target_modules": targets[:1], "fan_in_fan_out": arch == "gpt2"}
    adapter = save_adapter(aligned, tmp_path / "adapter", **config)
    for name, split in (("auto", "auto"), ("sizes", sizes)):
        method = SafeLoRA(k=3, split=split)
        report = repair(adapter, method, aligned=aligned, base=base, out=tmp_path / name)
        assert sum(row.edited for row in report.modules) == 3
        assert report.parameters["split"] == split
    assert weights(tmp_path / "auto").keys() == weights(adapter).keys()
    assert all(torch.equal(a, weights(tmp_path / "sizes")[k]) for k, a in weights(tmp_path / "auto").items())


def test_a_split_fused_model_is_the_unfused_model(tmp_path):
    """Phi-3 has Llama's weights in other tensors: the same adapter gives the same rows and the same repair."""
    aligned, base = save_pair(tmp_path / "fused", arch="phi3")
    adapter = save_adapter(aligned, tmp_path / "adapter", target_modules=["qkv_proj"])
    tensors, cuts = load_file(adapter / "adapter_model.safetensors"), {"q": (0, 32), "k": (32, 48), "v": (48, 64)}
    for where, folder in (("aligned", aligned), ("base", base)):
        (tmp_path / where).mkdir()
        save_file(unfused(weights(folder), cuts, lambda k: k), tmp_path / where / "model.safetensors")
    (tmp_path / "own").mkdir()
    config = json.loads((adapter / "adapter_config.json").read_text())
    (tmp_path / "own" / "adapter_config.json").write_text(json.dumps(config))
    parts = unfused(tensors, cuts, lambda k: "lora_B" in k)
    save_file(parts, tmp_path / "own" / "adapter_model.safetensors")
    one = repair(adapter, SafeLoRA(split="auto"), aligned=aligned, base=base, out=tmp_path / "one")
    roles = {"aligned": tmp_path / "aligned", "base": tmp_path / "base"}
    two = repair(tmp_path / "own", SafeLoRA(), out=tmp_path / "two", **roles)

    def numbers(report):
        return sorted((row.cosine, row.null_cosine, row.signed, row.norm_after, row.edited) for row in report.modules)

    assert one.changed == two.changed == 4  # 60 % of 6
    for left, right in zip(numbers(one), numbers(two), strict=True):
        assert left == pytest.approx(right, rel=1e-5)


def unfused(tensors, cuts, rows):
    """qkv_proj as three; A is the same for all of them."""
    found = {}
    for key, value in tensors.items():
        for name, (start, stop) in cuts.items():
            part = value[start:stop] if rows(key) else value
            found[key.replace("qkv_proj", f"{name}_proj") if "qkv_proj" in key else key] = part.clone()
    return found


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ([32, 32, 32], "add up to the 64 rows"),
        ("heads", "`split` of SafeLoRA"),
        ([64], "`split` of SafeLoRA"),
        ([64, 0], "`split` of SafeLoRA"),
    ],
)
def test_bad_splits(split, message, tmp_path):
    aligned, base = save_pair(tmp_path, arch="phi3")
    adapter = save_adapter(aligned, tmp_path / "adapter", target_modules=["qkv_proj"])
    with pytest.raises(ConfigError, match=message):
        repair(adapter, SafeLoRA(split=split), aligned=aligned, base=base, out=tmp_path / "out")
    with pytest.raises(ConfigError, match="`split` of CSULoRA"):
        CSULoRA(split="heads")


def test_a_split_that_fits_nothing_is_an_error(trio, tmp_path):
    roles = {"aligned": trio.aligned, "base": trio.base}
    with pytest.raises(ConfigError, match="no fused attention weight is tuned"):
        repair(trio.adapter, SafeLoRA(split=[16, 16]), out=tmp_path / "out", **roles)
    auto = repair(trio.adapter, SafeLoRA(split="auto"), out=tmp_path / "auto", **roles)
    assert auto.modules == repair(trio.adapter, SafeLoRA(), out=tmp_path / "none", **roles).modules


def test_which_weights_are_fused():
    config = {"num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 64}
    assert pieces("a.qkv_proj", 96, "auto", config) == [(0, 64), (64, 80), (80, 96)]
    assert pieces("a.Wqkv", 96, "auto", config) == [(0, 64), (64, 80), (80, 96)]
    assert pieces("a.experts.gate_up_proj[3]", 10, "auto", config) == [(0, 5), (5, 10)]
    assert pieces("a.experts.gate_up_proj[3]", 10, "auto", {**config, "model_type": "gpt_oss"}) == []
    assert pieces("a.gate_up_proj", 96, [64, 16, 16], config) == []
    assert pieces("a.q_proj", 96, "auto", config) == []
    with pytest.raises(NotYetSupported, match="head by head"):
        pieces("a.query_key_value", 96, "auto", config)
    with pytest.raises(NeedsError, match="give `split` as sizes"):
        pieces("a.qkv_proj", 96, "auto", {})


def test_ranks_cannot_grow_for_a_part_of_a_weight_but_can_when_merged(tmp_path):
    aligned, base = save_pair(tmp_path, arch="phi3")
    adapter = save_adapter(aligned, tmp_path / "adapter", target_modules=["qkv_proj"])
    method = CSULoRA(sides="both", rank=4, split="auto")
    with pytest.raises(NotYetSupported, match="--merge"):
        repair(adapter, method, aligned=aligned, base=base, out=tmp_path / "out")
    assert repair(adapter, method, aligned=aligned, base=base, merge=True, out=tmp_path / "out").changed == 6


# --- experts ---------------------------------------------------------------------------------------------------------


def save_moe(root, kind):
    """Base and aligned models of a mixture; every kind keeps its experts in another way."""
    torch.manual_seed(0)
    config = {**SMALL, "intermediate_size": 32} if kind == "gpt_oss_square" else SMALL
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind.removesuffix("_square"), **config))
    model.save_pretrained(root / "base")
    noise_(model, 0.01, 7).save_pretrained(root / "aligned")
    return root / "aligned", root / "base"


MOE = {
    "qwen3_moe": EXPERTS,
    "mixtral": EXPERTS,
    "olmoe": EXPERTS,
    "gpt_oss": EXPERTS,
    "gpt_oss_square": EXPERTS,
    "granitemoe": ["block_sparse_moe.experts.gate_up_proj", "block_sparse_moe.experts.down_proj"],
}


def moe_adapter(aligned, out, targets, **config):
    return save_adapter(aligned, out, r=3, target_modules=["q_proj"], target_parameters=targets, **config)


@pytest.mark.parametrize("kind", MOE)
def test_merging_experts_is_that_of_peft(kind, tmp_path):
    aligned, _ = save_moe(tmp_path, kind)
    patterns = {"rank_pattern": {".*down_proj": 2}, "alpha_pattern": {".*gate_up_proj": 5}, "use_rslora": True}
    for name, config in (("plain", {}), ("patterns", patterns)):
        adapter = moe_adapter(aligned, tmp_path / name, MOE[kind], **config)
        roles = {"aligned": aligned, "merge": True}
        report = repair(adapter, ScaleAdapter(scale=1.0), out=tmp_path / f"{name} out", **roles)
        assert report.changed == 0
        expected, start, found = merged(aligned, adapter), in_memory(aligned), in_memory(tmp_path / f"{name} out")
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-6)
        assert sum(not torch.equal(value, start[key]) for key, value in expected.items()) == 6


@pytest.mark.parametrize("kind", MOE)
@pytest.mark.parametrize("full", [False, True], ids=["adapter", "checkpoint"])
def test_every_expert_has_its_own_safety_vector(kind, full, tmp_path):
    aligned, base = save_moe(tmp_path, kind)
    adapter = moe_adapter(aligned, tmp_path / "adapter", MOE[kind])
    start, before, old = in_memory(aligned), in_memory(base), merged(aligned, adapter)
    tuned = adapter
    if full:
        model = AutoModelForCausalLM.from_pretrained(aligned)
        model.load_state_dict(old)
        model.save_pretrained(tmp_path / "tuned")
        tuned = tmp_path / "tuned"
    method = SafeLoRA(fraction=1.0, split="auto")
    report = repair(tuned, method, aligned=aligned, base=base, out=tmp_path / "out")
    new = in_memory(tmp_path / "out") if full else merged(aligned, tmp_path / "out")
    assert report.changed >= 2 * (1 + 4 * (2 if "gpt_oss" in kind else 3))
    seen = 0
    for key in (key for key in start if ".experts." in key and not key.endswith("bias")):
        for e in range(4):
            turn = (lambda w: w.T) if "gpt_oss" in kind else (lambda w: w)
            parts = [slice(None)] if "down" in key or "gpt_oss" in kind else [slice(0, 24), slice(24, 48)]
            for part in parts:
                w, u, b, n = (turn(x[key][e])[part].double() for x in (start, old, before, new))
                torch.testing.assert_close(n, w + safe_lora(u - w, w - b), rtol=0, atol=2e-6)
                assert not torch.allclose(n, u, atol=1e-4)
                seen += 1
    assert seen == 2 * 4 * (2 if "gpt_oss" in kind else 3)


def test_one_expert_can_be_edited_alone(tmp_path):
    aligned, base = save_moe(tmp_path, "gpt_oss")
    adapter = moe_adapter(aligned, tmp_path / "adapter", EXPERTS)
    repair(adapter, OneExpert(), aligned=aligned, base=base, out=tmp_path / "out")
    old, new, start = merged(aligned, adapter), merged(aligned, tmp_path / "out"), in_memory(aligned)
    for key in old:
        moved = (old[key] - new[key]).abs() > 1e-7
        if key == "model.layers.1.mlp.experts.down_proj":
            assert moved[2].any()
            torch.testing.assert_close(new[key][2] - start[key][2], 0.5 * (old[key] - start[key])[2])
            moved[2] = False
        assert not moved.any()


class OneExpert(ScaleAdapter):
    """Halves the update of one expert."""

    def select(self, scores: list[LayerScore]) -> set[str]:
        return {"model.layers.1.mlp.experts.down_proj[2]"} & {score.module for score in scores}


def test_stacked_experts_of_a_checkpoint_are_taken_apart_and_only_they(tmp_path):
    """Other tensors of three axes (convolutions) are no experts."""
    tensors = {
        "model.layers.0.mlp.experts.down_proj": torch.randn(3, 8, 6),
        "model.layers.0.mixer.conv1d.weight": torch.randn(8, 1, 4),
        "model.layers.0.mlp.gate.weight": torch.randn(3, 6),
    }
    for name, size in (("base", 0.0), ("aligned", 0.01), ("tuned", 0.02)):
        (tmp_path / name).mkdir()
        moved = {key: value + size * torch.randn(value.shape) for key, value in tensors.items()}
        save_file(moved, tmp_path / name / "model.safetensors")
    roles = {"aligned": tmp_path / "aligned", "base": tmp_path / "base"}
    report = repair(tmp_path / "tuned", SafeLoRA(fraction=1.0), out=tmp_path / "out", **roles)
    stacked = {f"model.layers.0.mlp.experts.down_proj[{e}]" for e in range(3)}
    assert {row.module for row in report.modules} == {*stacked, "model.layers.0.mlp.gate"}
    assert report.untouched == ("model.layers.0.mixer.conv1d.weight",)


@pytest.mark.parametrize("method", [LoXRepair(k=2), CSULoRA(sides="both", rank=4)], ids=["lox", "csu"])
def test_experts_cannot_get_more_ranks(method, tmp_path):
    aligned, base = save_moe(tmp_path, "qwen3_moe")
    adapter = moe_adapter(aligned, tmp_path / "adapter", EXPERTS)
    with pytest.raises(NotYetSupported, match="shared by several layers"):
        repair(adapter, method, aligned=aligned, base=base, out=tmp_path / "out")
    assert repair(adapter, method, aligned=aligned, base=base, merge=True, out=tmp_path / "out").changed


def test_a_parameter_of_a_linear_layer_is_its_weight(tmp_path):
    """`target_parameters` may name a matrix: then B A is its update."""
    aligned, base = save_moe(tmp_path, "qwen3_moe")
    adapter = moe_adapter(aligned, tmp_path / "adapter", ["mlp.gate.weight", "mlp.experts.down_proj"])
    report = repair(adapter, SafeLoRA(fraction=1.0), aligned=aligned, base=base, out=tmp_path / "out")
    assert {"model.layers.0.mlp.gate", "model.layers.1.mlp.experts.3.down_proj"} <= {r.module for r in report.modules}
    key = "model.layers.1.mlp.gate.weight"
    start, before, old = in_memory(aligned), in_memory(base), merged(aligned, adapter)
    expected = start[key] + safe_lora(old[key] - start[key], start[key] - before[key])
    torch.testing.assert_close(merged(aligned, tmp_path / "out")[key].double(), expected, rtol=0, atol=1e-6)


def test_experts_that_cannot_be_found_or_told_apart(tmp_path):
    aligned, base = save_moe(tmp_path, "qwen3_moe")
    adapter = moe_adapter(aligned, tmp_path / "adapter", EXPERTS)
    with pytest.raises(NeedsError, match="give `aligned`"):
        repair(adapter, ScaleAdapter(), out=tmp_path / "out")
    tensors = load_file(adapter / "adapter_model.safetensors")
    key = next(key for key in tensors if "experts.lora_A" in key)
    wrong = {**tensors, key: torch.zeros(9, 24), key.replace("lora_A", "lora_B"): torch.zeros(32, 9)}
    save_file(wrong, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="for 4 experts, but the config says rank 3"):
        repair(adapter, ScaleAdapter(), aligned=aligned, out=tmp_path / "out")
    save_file({**tensors, key: torch.zeros(12, 25)}, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="0 of its `target_parameters`"):
        repair(adapter, ScaleAdapter(), aligned=aligned, out=tmp_path / "out")


def test_llama4_adapters_are_refused_and_its_checkpoints_are_not(tmp_path):
    aligned, base = save_moe(tmp_path, "llama4_text")
    adapter = moe_adapter(aligned, tmp_path / "adapter", ["feed_forward.experts.down_proj"])
    with pytest.raises(NotYetSupported, match="on the side of the inputs; merge"):
        repair(adapter, SafeLoRA(), aligned=aligned, base=base, out=tmp_path / "out")
    model = noise_(AutoModelForCausalLM.from_pretrained(aligned), 0.02, 5)
    model.save_pretrained(tmp_path / "tuned")
    repair(tmp_path / "tuned", SafeLoRA(fraction=1.0), aligned=aligned, base=base, out=tmp_path / "out")
    key = "model.layers.0.feed_forward.experts.down_proj"
    start, before, old, new = (weights(tmp_path / f)[key] for f in ("aligned", "base", "tuned", "out"))
    for e in range(4):
        expected = start[e].T + safe_lora((old - start)[e].T, (start - before)[e].T)
        torch.testing.assert_close(new[e].T.double(), expected, rtol=0, atol=1e-6)
