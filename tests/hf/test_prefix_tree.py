# SPDX-License-Identifier: Apache-2.0
"""Batches run as trees against the same lines run one by one, and what must not run as a tree."""

import pytest
import torch

from moored.data.tiny import tiny_model
from moored.hf import prefix_tree
from moored.hf.hooks import body
from moored.hf.prefix_tree import answer_logits, laid_out, runs_trees
from moored.hf.reader import answer_targets
from moored.hf.statistics import squares, summed

ARCHITECTURES = ["llama", "qwen2", "qwen3", "gemma", "mistral", "phi3", "qwen3_moe", "gpt2", "opt"]
LINES = [[5, 6, 7, 8, 9, 10], [5, 6, 7, 8, 11], [5, 6, 7, 12], [5, 6, 7, 8, 11]]


def batch(lines=LINES, answers=2):
    """Padded on the right; the last tokens of a line are its answer."""
    width = max(map(len, lines))
    ids, labels, mask = (torch.full((len(lines), width), fill) for fill in (0, -100, 0))
    for i, line in enumerate(lines):
        ids[i, : len(line)], mask[i, : len(line)] = torch.tensor(line), 1
        labels[i, len(line) - answers : len(line)] = torch.tensor(line[-answers:])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def alone(model, line):
    """States and logits of a line by itself."""
    ids = torch.tensor([line])
    return body(model)(input_ids=ids).last_hidden_state[0], model(input_ids=ids).logits[0]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_states_and_logits_are_those_of_the_lines(arch):
    model = tiny_model(arch).eval()
    layout = laid_out(model, batch())
    assert layout.inputs["input_ids"].tolist() == [[5, 6, 7, 8, 9, 10, 11, 12]]
    with torch.no_grad():
        states = layout.spread(body(model)(**layout.inputs, use_cache=False).last_hidden_state)
        logits = answer_logits(model, batch())
        apart = [alone(model, line) for line in LINES]
    for i, (own, _) in enumerate(apart):
        torch.testing.assert_close(states[i, : len(own)], own, rtol=0, atol=1e-5)
    expected = torch.cat([own[-3:-1] for _, own in apart])
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    assert answer_targets(batch()["labels"]).tolist() == [token for line in LINES for token in line[-2:]]


def test_gradients_are_those_of_the_lines():
    model = tiny_model().eval()
    answer_logits(model, batch()).logsumexp(dim=-1).sum().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    sum(alone(model, line)[1][-3:-1].logsumexp(dim=-1).sum() for line in LINES).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arch", ["llama", "opt"])
def test_sums_count_what_lines_share_once_per_line(arch):
    model = tiny_model(arch).eval()
    layers = [
        module for name, module in model.named_modules() if name.endswith(("layers.1.mlp.up_proj", "layers.1.fc1"))
    ]
    seen = []
    found = summed(model, {"x": (layers[0], squares)}, [batch()])["x"]
    hook = layers[0].register_forward_hook(lambda m, args, output: seen.append(args[0].flatten(0, -2)))
    with torch.no_grad():
        for line in LINES:
            alone(model, line[:])
    hook.remove()
    expected = torch.cat(seen[::2]).double().square().sum(dim=0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


def test_the_output_layer_can_be_summed_up():
    model = tiny_model().eval()
    found = summed(model, {"x": (model.lm_head, squares)}, [batch()])["x"]
    with torch.no_grad():
        expected = torch.cat([alone(model, line)[0] for line in LINES]).double().square().sum(dim=0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_tree_must_be_less_to_run(monkeypatch):
    model = tiny_model().eval()
    apart = batch([[5, 6, 7], [8, 9, 10]])
    assert laid_out(model, apart).inputs["input_ids"].shape == (2, 3)
    monkeypatch.setattr(prefix_tree, "LARGEST", 7)
    assert laid_out(model, batch()).inputs["input_ids"].shape == (4, 6)


def test_a_window_shorter_than_a_line_is_kept():
    model = tiny_model("mistral", sliding_window=4).eval()
    assert runs_trees(tiny_model("mistral").eval())
    layout = laid_out(model, batch())
    assert layout.inputs["input_ids"].shape == (4, 6)


@pytest.mark.parametrize("name", ["position_ids", "attention_mask"])
def test_a_model_that_ignores_positions_or_the_mask_runs_lines_apart(name, monkeypatch):
    model = tiny_model().eval()
    inputs = prefix_tree._Tree.inputs

    def ignoring(tree, model):
        return {key: value for key, value in inputs(tree, model).items() if key != name}

    monkeypatch.setattr(prefix_tree._Tree, "inputs", ignoring)
    assert not runs_trees(model)
    assert laid_out(model, batch()).inputs["input_ids"].shape == (4, 6)


def test_a_model_that_takes_no_mask_of_pairs_runs_lines_apart(monkeypatch):
    model = tiny_model().eval()
    forward = type(body(model)).forward

    def refusing(self, *args, attention_mask=None, **more):
        if attention_mask is not None and attention_mask.dim() == 4:
            raise ValueError("masks have two axes")
        return forward(self, *args, attention_mask=attention_mask, **more)

    monkeypatch.setattr(type(body(model)), "forward", refusing)
    assert not runs_trees(model)
    assert answer_logits(model, batch()).shape[0] == 8
