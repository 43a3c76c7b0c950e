# SPDX-License-Identifier: Apache-2.0
"""Recover against steps taken one number at a time in fp64, and what it decides by the task."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from moored.data.chat import encode, prompt_ids
from moored.data.tiny import tiny_rows, tiny_tokenizer
from moored.errors import ConfigError, DataError, NeverSupported
from moored.hf.prefix_tree import runs_trees
from moored.repairs import recover
from moored.repairs.engine import repair
from moored.repairs.recover import Recover, last_states, likelihood
from repairs.repair_models import factors, save_adapter, save_pair, weights

HARMFUL, TASK = tiny_rows(11, "harmful", 2), tiny_rows(9, "benign", 2)
END = 2


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three layers, so that L_end is 2, and an adapter on them."""
    root = tmp_path_factory.mktemp("three")
    aligned, _ = save_pair(root, num_hidden_layers=3)
    return SimpleNamespace(aligned=aligned, adapter=save_adapter(aligned, root / "adapter"))


def run(three, out, method, harmful=HARMFUL, task=TASK, tuned=None):
    rows = {"harmful": harmful, "calibration": task}
    return repair(tuned or three.adapter, method, aligned=three.aligned, merge=True, out=out, **rows)


def merged(three):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(three.aligned), three.adapter)
    return model.merge_and_unload().requires_grad_().eval()


def means(model, rows):
    """The mean last state behind block L_end of every eight rows, one row at a time."""
    tokenizer, found = tiny_tokenizer(), []
    for row in rows:
        ids = torch.tensor([prompt_ids(tokenizer, row.prompt)])
        found.append(model(input_ids=ids, output_hidden_states=True).hidden_states[END][0, -1])
    return [torch.stack(found[i : i + 8]).mean(dim=0) for i in range(0, len(found), 8)], torch.stack(found).mean(dim=0)


def slopes(model, names, rows, toward):
    """The gradient of the sum over batches of -cos(mean h, d)."""
    loss = 0.0
    for mean in means(model, rows)[0]:
        loss = loss - (mean @ toward) / (mean.norm() * toward.norm())
    parameters = dict(model.named_parameters())
    return dict(zip(names, torch.autograd.grad(loss, [parameters[f"{n}.weight"] for n in names]), strict=True))


def best(candidates, count):
    """The entries with the largest |g|; what comes next must be clearly less, else fp32 could choose another."""
    ranked = sorted(candidates, reverse=True)
    if count < len(ranked):
        assert ranked[count - 1][0] > (1 + 1e-4) * ranked[count][0]
    return {(name, place) for _, name, place in ranked[:count]}


def by_hand(three, rho, steps, rolls=False, accumulate=False):
    """Positions that are restored, after every step."""
    start = AutoModelForCausalLM.from_pretrained(three.aligned).double().eval()
    model, tuned = merged(three).double(), dict(merged(three).double().named_parameters())
    names = [n for n in factors(three.adapter) if int(n.split(".")[2]) < END]
    theta = {n: model.get_parameter(f"{n}.weight") for n in names}
    begun = {n: start.get_parameter(f"{n}.weight").detach() for n in names}
    safe, useful = means(start, HARMFUL)[1].detach(), means(model, TASK)[1].detach()
    k = math.ceil(rho * sum(p.numel() for p in model.model.layers.parameters()))
    restored, total = set(), dict.fromkeys(names, 0.0)
    for _ in range(steps):
        g = slopes(model, names, HARMFUL, safe)
        total = {n: total[n] + g[n] if accumulate else g[n] for n in names}
        fits = {n: (theta[n].detach() - begun[n]) * total[n] > 0 for n in names}
        found = [(float(total[n][p]), n, p) for n in names for p in map(tuple, fits[n].nonzero().tolist())]
        now = best([(abs(size), n, p) for size, n, p in found], k)
        with torch.no_grad():
            for n, p in now:
                theta[n][p] = begun[n][p]
        if rolls:
            g = slopes(model, names, TASK, useful)
            found = [(n, p) for n, p in now if (theta[n][p] - tuned[f"{n}.weight"][p]) * g[n][p] > 0]
            back = best([(abs(float(g[n][p])), n, p) for n, p in found], math.ceil(0.2 * len(found)))
            assert back
            with torch.no_grad():
                for n, p in back:
                    theta[n][p] = tuned[f"{n}.weight"][p]
            now -= back
        restored |= now
    return restored


def positions(three, out):
    """What stands as it did in the aligned model; all else must be as tuned."""
    start, after = weights(three.aligned), weights(out)
    tuned, found = merged(three).state_dict(), set()
    for key in after:
        moved = (tuned[key] != start[key]) & (after[key] == start[key])
        torch.testing.assert_close(after[key][~moved], tuned[key][~moved], rtol=0, atol=1e-6)
        found |= {(key.removesuffix(".weight"), tuple(p)) for p in moved.nonzero().tolist()}
    return found


@pytest.mark.parametrize(("rolls", "accumulate"), [(False, False), (False, True), (True, False)])
def test_restores_what_steps_by_hand_restore(rolls, accumulate, three, tmp_path):
    method = Recover(rho=0.003, steps=3, rollback=rolls, accumulate=accumulate, metric_drop=1.0)
    report = run(three, tmp_path / "out", method)
    expected = by_hand(three, 0.003, 3, rolls, accumulate)
    assert len(expected) > 100
    assert positions(three, tmp_path / "out") == expected
    assert f"restored {len(expected)} numbers" in report.notes[-1]


def test_accumulation_and_rollback_are_other_choices(three):
    one = by_hand(three, 0.003, 3)
    assert one != by_hand(three, 0.003, 3, accumulate=True)
    assert len(by_hand(three, 0.003, 3, rolls=True)) < len(one)


def scripted(monkeypatch, *values):
    """The task's probability at every look: before, then after the steps that are looked at."""
    left = list(values)
    monkeypatch.setattr(recover, "likelihood", lambda model, batches: left.pop(0))
    return left


@pytest.mark.parametrize(
    ("method", "looks", "like"),
    [
        ({"steps": 4}, [1.0, 0.96, 0.97], {"steps": 4, "rollback": False}),
        ({"steps": 4}, [1.0, 0.94, 0.99, 0.95], {"steps": 4, "rollback": True}),
        ({"steps": 4}, [1.0, 0.96, 0.94], {"steps": 2, "rollback": False}),
        ({"steps": 4, "rollback": True}, [1.0, 0.97, 0.2], {"steps": 2, "rollback": True}),
        ({"steps": 4, "rollback": False}, [1.0, 0.2, 0.97], {"steps": 4, "rollback": False}),
        ({"steps": 4}, [1.0, 0.2, 0.3, 0.4], {}),
    ],
)
def test_the_task_decides(method, looks, like, three, tmp_path, monkeypatch):
    left = scripted(monkeypatch, *looks)
    report = run(three, tmp_path / "out", Recover(warmup=2, check=2, **method))
    assert not left
    monkeypatch.undo()
    expected = set()
    if like:
        run(three, tmp_path / "like", Recover(metric_drop=1.0, **like))
        expected = positions(three, tmp_path / "like")
    else:
        assert report.changed == 0
        assert "nothing is restored" in report.notes[-1]
        assert "`metric_drop`" in report.notes[-1]
    assert positions(three, tmp_path / "out") == expected


def test_likelihood_is_the_geometric_mean_over_answer_tokens(three):
    model, tokenizer, logs = merged(three), tiny_tokenizer(), []
    for row in TASK:
        line = encode(tokenizer, row, max_length=512)
        with torch.no_grad():
            odds = model(input_ids=torch.tensor([line["input_ids"]])).logits[0].double().log_softmax(dim=-1)
        logs += [float(odds[t - 1, label]) for t, label in enumerate(line["labels"]) if label != -100]
    rows = [encode(tokenizer, row, max_length=512) for row in TASK]
    batches = [recover_batch(rows[:4]), recover_batch(rows[4:])]
    assert likelihood(model, batches) == pytest.approx(math.exp(sum(logs) / len(logs)), rel=1e-5)
    assert math.isnan(likelihood(model, []))


def recover_batch(rows):
    width = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return {n: torch.tensor([row[n] + [f] * (width - len(row[n])) for row in rows]) for n, f in fill.items()}


def test_only_blocks_that_are_needed_run_and_the_model_is_whole_again(three):
    model = merged(three)
    assert runs_trees(model)  # the trial runs them all
    ran = []
    for i, layer in enumerate(model.model.layers):
        layer.register_forward_hook(lambda m, args, output, i=i: ran.append(i))
    batch = recover_batch([encode(tiny_tokenizer(), row, max_length=512) for row in TASK[:2]])
    last_states(model, 2, batch)
    assert ran == [0, 1]
    assert len(model.model.layers) == 3


def test_only_prompts_are_read(three, tmp_path):
    """Other answers, or none, change nothing where the task is not looked at."""
    method = Recover(steps=2, metric_drop=1.0)
    run(three, tmp_path / "one", method)
    bare = [[replace(row, messages=row.prompt) for row in rows] for rows in (HARMFUL, TASK)]
    run(three, tmp_path / "two", method, *bare)
    assert positions(three, tmp_path / "one") == positions(three, tmp_path / "two")
    with pytest.raises(DataError, match="has none"):
        run(three, tmp_path / "three", Recover(steps=2), *bare)


@pytest.mark.parametrize("arch", ["gpt2", "opt", "qwen2"])
def test_other_layouts_and_full_models(arch, tmp_path):
    """GPT-2 stores (in, out); biases and norms of a full model stay as tuned."""
    aligned, base = save_pair(tmp_path, arch=arch)
    rows = {"harmful": HARMFUL, "calibration": TASK}
    report = repair(base, Recover(rho=0.01, steps=2), aligned=aligned, out=tmp_path / "out", **rows)
    assert report.changed
    tuned, start, after = (weights(folder) for folder in (base, aligned, tmp_path / "out"))
    restored = {key: after[key] != tuned[key] for key in after}
    assert all(torch.equal(after[key][mask], start[key][mask]) for key, mask in restored.items())
    assert sum(int(mask.sum()) for mask in restored.values()) == int(report.notes[-1].split()[5])
    edited = {f"{row.module}.weight" for row in report.modules if row.edited}
    assert {key for key in after if restored[key].any()} == edited


def test_tuning_of_late_blocks_alone_is_said(three, tmp_path):
    late = save_adapter(three.aligned, tmp_path / "late", layers_to_transform=[2])
    report = run(three, tmp_path / "out", Recover(), tuned=late)
    assert report.changed == 0
    assert "no linear layer of the first 2 decoder blocks" in report.notes[-1]
    assert run(three, tmp_path / "all", Recover(steps=2, depth=1.0), tuned=late).changed


def test_an_adapter_must_be_merged(three, tmp_path):
    rows = {"harmful": HARMFUL, "calibration": TASK}
    with pytest.raises(NeverSupported, match="--merge"):
        repair(three.adapter, Recover(), aligned=three.aligned, out=tmp_path / "out", **rows)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"rho": -0.1}, "`rho` of Recover must be in 0-1"),
        ({"rollback": "maybe"}, '`rollback` of Recover must be "auto", true or false'),
        ({"depth": 0.0}, "`depth` of Recover must be in 0-1, above 0"),
        ({"check": 0}, "`check` of Recover must be an integer >= 1"),
        ({"metric_drop": 2.0}, "`metric_drop` of Recover must be in 0-1"),
    ],
)
def test_bad_parameters(parameters, said):
    with pytest.raises(ConfigError, match=said):
        Recover(**parameters)
