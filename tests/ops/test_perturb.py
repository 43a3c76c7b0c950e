# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from moored.ops.perturb import length, worst_case
from moored.ops.proximal import distance, pull_

GRADS = [torch.tensor([[[3.0, 0.0]]]), torch.tensor([[[0.0, 4.0]]])]


def test_by_hand():
    first, second = worst_case(GRADS, 10.0)
    assert first.tolist() == [[[pytest.approx(6.0), 0.0]]]
    assert second.tolist() == [[[0.0, pytest.approx(8.0)]]]
    assert [float(e.norm()) for e in worst_case(GRADS, 2.0, "layer")] == [pytest.approx(2.0)] * 2


def test_each_scope_gives_the_radius_to_its_own_group():
    torch.manual_seed(0)
    grads = [torch.randn(3, 5, 4) for _ in range(2)]
    stack = {scope: torch.stack(worst_case(grads, 1.5, scope)) for scope in ("batch", "sample", "layer", "token")}
    assert torch.allclose(stack["batch"].norm(), torch.tensor(1.5))
    assert torch.allclose(stack["sample"].square().sum((0, 2, 3)).sqrt(), torch.full((3,), 1.5))
    assert torch.allclose(stack["layer"].square().sum((1, 2, 3)).sqrt(), torch.full((2,), 1.5))
    assert torch.allclose(stack["token"].square().sum((0, 3)).sqrt(), torch.full((3, 5), 1.5))
    assert float(length(list(stack["batch"]))) == pytest.approx(1.5)


def test_zero_gradient_and_zero_radius_give_exactly_zero():
    assert all(e.count_nonzero() == 0 for e in worst_case([torch.zeros(2, 3, 4)], 1.0))
    assert all(e.count_nonzero() == 0 for e in worst_case(GRADS, 0.0))


def test_pull_is_the_gradient_of_the_proximal_term():
    torch.manual_seed(0)
    weights = [torch.randn(4, 3, requires_grad=True), torch.randn(5, requires_grad=True)]
    anchors = [torch.randn(4, 3), torch.randn(5)]
    term = 0.7 / 2 * sum((w - a).square().sum() for w, a in zip(weights, anchors, strict=True))
    want = torch.autograd.grad(term, weights)
    weights[0].grad = torch.ones(4, 3)
    gap = pull_(weights, anchors, 0.7)
    assert torch.allclose(weights[0].grad, 1 + want[0])
    assert torch.allclose(weights[1].grad, want[1])
    assert torch.allclose(gap, distance(weights, anchors))
    assert float(gap) == pytest.approx(float((term.detach() * 2 / 0.7).sqrt()), rel=1e-5)
