# SPDX-License-Identifier: Apache-2.0
"""Antidote against Wanda scores computed token by token in fp64, and what is summed up over tokens."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from moored.data.chat import encode
from moored.data.tiny import tiny_rows, tiny_tokenizer
from moored.errors import ConfigError, NeedsError, NeverSupported, NotYetSupported
from moored.hf.statistics import squares, summed
from moored.method import Need
from moored.repairs.antidote import Antidote, pruned
from moored.repairs.engine import repair
from moored.repairs.lab import Lab
from repairs.repair_models import factors, save_adapter, save_pair, weights

ROWS = tiny_rows(7, "harmful", 2)


def inputs(trio, module, adapter):
    """What goes into a module of the tuned model, all tokens of all rows, one row at a time."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(trio.aligned), adapter).eval()
    seen = []
    model.base_model.model.get_submodule(module).register_forward_pre_hook(lambda m, args: seen.append(args[0][0]))
    tokenizer = tiny_tokenizer()
    with torch.no_grad():
        for row in ROWS:
            model(input_ids=torch.tensor([encode(tokenizer, row, max_length=512)["input_ids"]]))
    return torch.cat(seen).double()


def wanda(matrix, x, alpha):
    """A matrix without the highest |M_ij| ||x_j|| of each row."""
    out = matrix.double().clone()
    norms = x.square().sum(dim=0).sqrt()
    for i, row in enumerate(out):
        scores = (row.abs() * norms).tolist()
        count = len(scores) - int(len(scores) * (1 - alpha))
        for j in sorted(range(len(scores)), key=lambda j: -scores[j])[:count]:
            out[i, j] = 0.0
    return out


@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_factors_are_pruned_each_by_its_own_inputs(alpha, trio, tmp_path):
    report = repair(trio.adapter, Antidote(alpha=alpha), aligned=trio.aligned, harmful=ROWS, out=tmp_path / "out")
    assert report.rows["harmful"]["rows"] == 7
    old, new = factors(trio.adapter), factors(tmp_path / "out")
    for module in old:
        x = inputs(trio, module, trio.adapter)
        a, b = old[module]
        torch.testing.assert_close(new[module][0].double(), wanda(a, x, alpha), rtol=0, atol=1e-7)
        torch.testing.assert_close(new[module][1].double(), wanda(b, x @ a.double().T, alpha), rtol=0, atol=1e-7)


@pytest.mark.parametrize("target", ["update", "weights"])
def test_matrices_are_pruned_whole(target, trio, tmp_path):
    method = Antidote(alpha=0.2, target=target)
    with pytest.raises(NeverSupported, match="--merge"):
        repair(trio.adapter, method, aligned=trio.aligned, harmful=ROWS, out=tmp_path / "out")
    repair(trio.adapter, method, aligned=trio.aligned, harmful=ROWS, merge=True, out=tmp_path / "out")
    start, after = weights(trio.aligned), weights(tmp_path / "out")
    for module, (a, b) in factors(trio.adapter).items():
        x, key = inputs(trio, module, trio.adapter), f"{module}.weight"
        update = 2 * b.double() @ a.double()
        if target == "update":
            expected = start[key].double() + wanda(update, x, 0.2)
        else:
            expected = wanda(start[key].double() + update, x, 0.2)
        torch.testing.assert_close(after[key].double(), expected, rtol=0, atol=1e-6)


def test_a_full_model_has_no_factors(trio, tmp_path):
    with pytest.raises(NeverSupported, match='target="update"'):
        repair(trio.base, Antidote(), aligned=trio.aligned, harmful=ROWS, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = repair(trio.base, Antidote(target="update"), aligned=trio.aligned, harmful=ROWS, out=tmp_path / "out")
    assert report.changed == len(report.modules)


@pytest.mark.parametrize("arch", ["gpt2", "opt"])
def test_other_layouts(arch, tmp_path):
    """GPT-2 stores (in, out); OPT's feed-forward puts lines and positions into one axis."""
    aligned, _ = save_pair(tmp_path, arch=arch)
    config = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
    config = config if arch == "gpt2" else {"target_modules": ["q_proj", "fc1", "fc2"]}
    adapter = save_adapter(aligned, tmp_path / "adapter", **config)
    report = repair(adapter, Antidote(), aligned=aligned, harmful=ROWS, out=tmp_path / "out")
    assert report.changed == len(report.modules)


def test_padding_is_left_out_and_other_layouts_are_refused():
    model = torch.nn.Linear(3, 3)
    layer, table = torch.nn.Linear(3, 3), torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    model.forward = lambda input_ids, attention_mask, use_cache: layer(table[input_ids])
    ids, mask = torch.tensor([[1, 2, 0], [3, 4, 1]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
    batch = {"input_ids": ids, "attention_mask": mask}
    found = summed(model, {"x": (layer, squares)}, [batch, batch])
    expected = 2 * (table[[1, 2, 3, 4, 1]] ** 2).sum(dim=0)
    torch.testing.assert_close(found["x"], expected.double())
    model.forward = lambda input_ids, attention_mask, use_cache: layer(table[input_ids][:1, :2].squeeze(0))
    with pytest.raises(NotYetSupported, match="cannot be told apart"):
        summed(model, {"x": (layer, squares)}, [batch])


def test_ties_and_ends():
    matrix, norms = torch.tensor([[1.0, 1.0, 2.0, 0.0]]), torch.tensor([2.0, 1.0, 1.0, 1.0])
    assert (pruned(matrix, norms, 0.25) != 0).sum() == 2
    assert pruned(matrix, norms, 1.0).abs().sum() == 0
    assert torch.equal(pruned(matrix, norms, 0.0), matrix)


def test_what_is_missing_or_wrong_is_said(trio, tmp_path):
    with pytest.raises(NeedsError, match="`harmful`, harmful prompts with harmful answers; give rows"):
        repair(trio.adapter, Antidote(), aligned=trio.aligned, out=tmp_path / "out")
    with pytest.raises(ConfigError, match="`alpha` of Antidote must be in 0-1"):
        Antidote(alpha=2.0)
    with pytest.raises(ConfigError, match="`target` of Antidote must be one of factors, update, weights"):
        Antidote(target="b")


def test_one_pass_and_one_number_per_channel(trio, tmp_path, monkeypatch):
    """However many rows: O(sum of widths) of memory, and no activation is kept."""
    passes, kept = [], []
    batches, prepare = Lab.batches, Antidote.prepare
    monkeypatch.setattr(Lab, "batches", lambda lab, need: passes.append(need) or batches(lab, need))
    monkeypatch.setattr(Antidote, "prepare", lambda own, lab: kept.append(prepare(own, lab)) or kept[0])
    repair(trio.adapter, Antidote(), aligned=trio.aligned, harmful=ROWS, out=tmp_path / "out")
    assert passes == [Need.HARMFUL]
    widths = {module: (a.shape[1], a.shape[0]) for module, (a, _) in factors(trio.adapter).items()}
    assert {module: tuple(len(part) for part in found) for module, found in kept[0].items()} == widths
