# SPDX-License-Identifier: Apache-2.0
"""Factored gradients of rows against gradients that autograd forms, one row at a time, in fp64."""

import math
from collections.abc import Iterator
from itertools import product

import pytest
import torch
from torch import nn

from moored.data.chat import AnswerCollator, encode
from moored.data.tiny import tiny_model, tiny_rows, tiny_tokenizer
from moored.hf.factored import linear_modules, mean_gradient, measured
from moored.ops.factored import cosine, gate_cosine, norm, overlap, sketch, total
from moored.ops.selection import greedy_match, mean_cosine, nearest_to_each

ROWS = [*tiny_rows(3), *tiny_rows(3, "harmful"), *tiny_rows(1, "alignment")]
"""Of several lengths, so that there is padding."""


def batches(size: int) -> Iterator[dict[str, torch.Tensor]]:
    tokenizer = tiny_tokenizer()
    encoded = [encode(tokenizer, row, max_length=256) for row in ROWS]
    collate = AnswerCollator(tokenizer.pad_token_id)
    yield from (collate(encoded[at : at + size]) for at in range(0, len(encoded), size))


def loss_of(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean over the answer's tokens of -log p, of one row; transformers' own loss rounds to fp32."""
    logp = model(input_ids=batch["input_ids"]).logits[0].log_softmax(dim=-1)
    learnt = [(at, token) for at, token in enumerate(batch["labels"][0].tolist()) if token != -100]
    return -torch.stack([logp[at - 1, token] for at, token in learnt]).mean()


@pytest.fixture(scope="module", params=["llama", "gpt2", "opt", "phi3"])
def dense(request):
    """A model in fp64, its linear layers, and per row and layer the gradient that autograd forms of the row's loss."""
    model = tiny_model(request.param).double().eval()
    modules = linear_modules(model)
    grads, losses = [], []
    for batch in batches(1):
        model.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        losses.append(loss.detach())
        turned = {n: m.weight.grad.clone() for n, m in modules.items()}
        grads.append({n: g if isinstance(modules[n], nn.Linear) else g.T for n, g in turned.items()})
    model.zero_grad()
    return model, modules, grads, torch.stack(losses)


def random_like(grads):
    draws = torch.Generator().manual_seed(0)
    return {n: torch.randn(g.shape, generator=draws, dtype=g.dtype) for n, g in grads.items()}


def test_every_number_of_a_row_is_that_of_its_dense_gradient(dense):
    model, modules, grads, losses = dense
    v = random_like(grads[0])
    frames = {n: (d[:, :3], d[:2]) for n, d in v.items()}
    found = measured(
        model,
        modules,
        batches(3),
        [
            lambda name, delta, x: norm(delta, x),
            lambda name, delta, x: overlap(delta, x, v[name]),
            lambda name, delta, x: cosine(delta, x, v[name]),
            lambda name, delta, x: gate_cosine(delta, x, v[name]),
            lambda name, delta, x: sketch(delta, x, *frames[name]),
        ],
    )
    torch.testing.assert_close(found.loss, losses, rtol=1e-12, atol=0)
    for (row, own), (at, name) in product(enumerate(grads), enumerate(modules)):
        g, d = own[name], v[name]
        c = d @ d.T / d.norm()
        assert g.norm() > 0
        wanted = [
            g.norm(),
            (g * d).sum(),
            (g * d).sum() / g.norm() / d.norm(),
            ((c @ g) * g).sum() / (c @ g).norm() / g.norm(),
            frames[name][0].T @ g @ frames[name][1].T,
        ]
        for values, value in zip(found.values, wanted, strict=True):
            torch.testing.assert_close(values[row, at], value, rtol=1e-9, atol=1e-12)


def test_the_mean_gradient_is_the_mean_of_the_dense_ones(dense):
    model, modules, grads, _ = dense
    for name, found in mean_gradient(model, modules, batches(3)).items():
        torch.testing.assert_close(found, torch.stack([own[name] for own in grads]).mean(dim=0), rtol=1e-9, atol=1e-12)


def test_looking_leaves_nothing_behind(dense):
    model, modules, _, _ = dense
    before = {name: (w.clone(), w.requires_grad) for name, w in model.named_parameters()}
    mean_gradient(model, modules, batches(4))
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name][0])
        assert weight.requires_grad == before[name][1]
        assert weight.grad is None
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())


def test_hooks_are_gone_after_an_error():
    model = tiny_model().eval()
    with pytest.raises(ZeroDivisionError):
        measured(model, linear_modules(model), batches(4), [lambda name, delta, x: 1 / 0])
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())


def test_rows_do_not_depend_on_their_company():
    model = tiny_model().eval()
    modules = linear_modules(model)
    numbers = [measured(model, modules, batches(size), [lambda n, d, x: norm(d, x)]) for size in (1, 7)]
    torch.testing.assert_close(numbers[0].values[0], numbers[1].values[0], rtol=1e-4, atol=1e-7)


def test_a_frozen_model_can_be_looked_at():
    model, free = tiny_model().eval().requires_grad_(False), tiny_model().eval()
    found, wanted = (mean_gradient(m, linear_modules(m), batches(4)) for m in (model, free))
    for name in wanted:
        assert torch.equal(found[name], wanted[name])


def test_what_vanishes_has_no_angle():
    delta, x = torch.zeros(2, 3, 4), torch.ones(2, 3, 5)
    d = torch.ones(4, 5)
    assert not cosine(delta, x, d).any()
    assert not gate_cosine(torch.ones(2, 3, 4), x, torch.zeros(4, 5)).any()


def test_factors_that_nearly_cancel_keep_their_length():
    delta = torch.tensor([[[1.0, 0.0], [-1.0, 1e-4]]])
    x = torch.tensor([[[1.0, 1.0], [1.0, 1.0]]])
    assert math.isclose(float(norm(delta, x)), math.sqrt(2) * 1e-4, rel_tol=1e-6)
    torch.testing.assert_close(total(delta, x).norm(), torch.tensor(math.sqrt(2) * 1e-4))


def test_greedy_match_takes_the_best_row_each_time():
    draws = torch.Generator().manual_seed(1)
    sketches, target = torch.randn(9, 3, 4, generator=draws), torch.randn(3, 4, generator=draws)

    def score(rows):
        s = sketches[list(rows)].double().sum(dim=0)
        return float(torch.stack([s[m] @ target[m].double() / s[m].norm() / target[m].norm() for m in range(3)]).mean())

    found: list[int] = []
    for row in greedy_match(sketches, target, 5):
        others = [r for r in range(9) if r not in found]
        assert row in others
        assert math.isclose(score([*found, row]), max(score([*found, r]) for r in others), rel_tol=1e-6)
        found.append(row)
    assert math.isclose(mean_cosine(sketches[found].sum(dim=0), target), score(found), rel_tol=1e-6)


def test_nearest_to_each_is_a_union_of_neighbourhoods():
    similarity = torch.tensor([[0.9, 0.8, 0.1, 0.0], [0.9, 0.2, 0.7, 0.1]])
    assert nearest_to_each(similarity, 1) == [0]
    assert nearest_to_each(similarity, 3) == [0, 1, 2]
    assert sorted(nearest_to_each(similarity, 4)) == [0, 1, 2, 3]
