# SPDX-License-Identifier: Apache-2.0
"""The proximal term (rho/2) ||w - anchor||^2 of Lisa, in gradient space."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def distance(weights: Sequence[Float[Tensor, "..."]], anchors: Sequence[Float[Tensor, "..."]]) -> Float[Tensor, ""]:
    """||w - anchor|| over all tensors together, the drift that Lisa's theory bounds."""
    squares = [(w.detach() - a).float().square().sum() for w, a in zip(weights, anchors, strict=True)]
    return torch.stack(squares).sum().sqrt()


def pull_(
    weights: Sequence[Float[Tensor, "..."]], anchors: Sequence[Float[Tensor, "..."]], rho: float
) -> Float[Tensor, ""]:
    """Add the gradient of (rho/2) ||w - anchor||^2, which is rho (w - anchor), to every `w.grad` in place.

    Building the term in gradient space needs no graph over the weights, is exact under autocast, and with
    accumulated gradients acts once per optimizer step.

    Args:
        weights: trainable tensors; a missing gradient counts as zero.
        anchors: tensors of the same shapes.
        rho: strength, >= 0 [loss per weight unit squared].

    Returns:
        ||w - anchor|| before the step.
    """
    squares = []
    for w, anchor in zip(weights, anchors, strict=True):
        gap = w.detach() - anchor
        squares.append(gap.float().square().sum())
        if w.grad is None:
            w.grad = gap.mul_(rho)
        else:
            w.grad.add_(gap.to(w.grad.dtype), alpha=rho)
    return torch.stack(squares).sum().sqrt()
