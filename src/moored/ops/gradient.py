# SPDX-License-Identifier: Apache-2.0
"""Gradients over all trainable weights as one vector: a step of given length along one, and adding to `p.grad`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from moored.ops.perturb import TINY, length


def step_down(
    weights: Sequence[Float[Tensor, "..."]], grads: Sequence[Float[Tensor, "..."]], distance: float
) -> list[Float[Tensor, "..."]]:
    """The weights w - distance * g / ||g||, with one Euclidean norm over all tensors together.

    Computed in fp32 (fp64 if the weights are) whatever the tensors' own type: what is rounded is only the result.

    Args:
        weights: the trainable tensors; left as they are.
        grads: of the same shapes; all zero gives the weights themselves.
        distance: length of the step in weight units.
    """
    scale = distance / (length(grads) + TINY)
    return [wide(w) - scale.to(w.device) * wide(g) for w, g in zip(weights, grads, strict=True)]


def add_(weights: Sequence[Tensor], terms: Sequence[Float[Tensor, "..."]], scale: float = 1.0) -> None:
    """Add `scale * term` to every `w.grad` in place; a missing gradient counts as zero.

    It is `w.grad` that is assigned, never an attribute of `w.data`, which would be lost without a word.

    Args:
        weights: trainable tensors.
        terms: of the same shapes, any type.
        scale: a factor on all of them.
    """
    for w, term in zip(weights, terms, strict=True):
        if w.grad is None:
            w.grad = (scale * term).to(w.dtype)
        else:
            w.grad.add_(term.to(w.grad.dtype), alpha=scale)


def dot(a: Sequence[Float[Tensor, "..."]], b: Sequence[Float[Tensor, "..."]]) -> Float[Tensor, ""]:
    """The inner product over all tensors together, summed in fp64.

    Args:
        a: tensors.
        b: of the same shapes.
    """
    parts = [(wide(x) * wide(y)).sum(dtype=torch.float64) for x, y in zip(a, b, strict=True)]
    return torch.stack(parts).sum()


def wide(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """A copy-free view of a tensor in at least fp32; without a graph."""
    return x.detach().to(torch.promote_types(x.dtype, torch.float32))
