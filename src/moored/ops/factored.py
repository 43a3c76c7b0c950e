# SPDX-License-Identifier: Apache-2.0
"""Gradients of single rows with respect to a linear layer y = W x, as the factors that they already are.

Backward gives G = dL/dW = sum_t delta_t x_t^T over the tokens t of a row, with delta_t = dL/dy_t. Lengths, angles and
sketches follow from the two factors, as with B = [delta_t] and A = [x_t^T] of a LoRA update, so that no o x i matrix
is formed for a row. Tokens that are padding have delta_t = 0 and count for nothing.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def inner(
    a: Float[Tensor, "rows tokens o"], b: Float[Tensor, "rows tokens o"], x: Float[Tensor, "rows tokens i"]
) -> Float[Tensor, " rows"]:
    """<sum_t a_t x_t^T, sum_t b_t x_t^T> = sum_st (a_s . b_t)(x_s . x_t), in fp64: the terms may nearly cancel.

    Args:
        a: left factors of one gradient.
        b: of the other.
        x: the right factors of both.
    """
    a, b, x = a.double(), b.double(), x.double()
    return ((a @ b.mT) * (x @ x.mT)).sum(dim=(1, 2))


def norm(delta: Float[Tensor, "rows tokens o"], x: Float[Tensor, "rows tokens i"]) -> Float[Tensor, " rows"]:
    """||G||, the Frobenius norm, in fp64."""
    return inner(delta, delta, x).clamp(min=0).sqrt()


def overlap(
    delta: Float[Tensor, "rows tokens o"], x: Float[Tensor, "rows tokens i"], direction: Float[Tensor, "o i"]
) -> Float[Tensor, " rows"]:
    """<G, D> = sum_t delta_t^T D x_t, in fp64.

    Args:
        delta: left factors.
        x: right factors.
        direction: D, dense.
    """
    return ((delta @ direction.to(delta)).double() * x.double()).sum(dim=(1, 2))


def cosine(
    delta: Float[Tensor, "rows tokens o"], x: Float[Tensor, "rows tokens i"], direction: Float[Tensor, "o i"]
) -> Float[Tensor, " rows"]:
    """<G, D> / (||G|| ||D||) in -1..1; 0 where either vanishes.

    Args:
        delta: left factors.
        x: right factors.
        direction: D, dense.
    """
    return ratio(overlap(delta, x, direction), norm(delta, x) * direction.double().norm()).clamp(-1, 1)


def gate_cosine(
    delta: Float[Tensor, "rows tokens o"], x: Float[Tensor, "rows tokens i"], safety: Float[Tensor, "o i"]
) -> Float[Tensor, " rows"]:
    """cos(C G, G) in 0-1 with C = V V^T / ||V||, what Safe LoRA compares with its threshold; 0 where either vanishes.

    C G has the factors C delta_t and x_t, <C G, G> is ||V^T G||^2 / ||V||, and the length of V cancels.

    Args:
        delta: left factors.
        x: right factors.
        safety: V, dense.
    """
    v = safety.to(delta)
    projected = (delta @ v) @ v.T
    return ratio(inner(projected, delta, x), norm(projected, x) * norm(delta, x)).clamp(0, 1)


def total(delta: Float[Tensor, "rows tokens o"], x: Float[Tensor, "rows tokens i"]) -> Float[Tensor, "o i"]:
    """The sum of the rows' gradients: one matrix for all of them."""
    return delta.flatten(0, 1).T @ x.flatten(0, 1)


def sketch(
    delta: Float[Tensor, "rows tokens o"],
    x: Float[Tensor, "rows tokens i"],
    left: Float[Tensor, "o k"],
    right: Float[Tensor, "j i"],
) -> Float[Tensor, "rows k j"]:
    """U^T G Q = sum_t (U^T delta_t)(Q^T x_t)^T: a few numbers that stand for a gradient.

    Args:
        delta: left factors.
        x: right factors.
        left: U.
        right: Q^T.
    """
    return (delta @ left.to(delta)).mT @ (x @ right.to(x).T)


def ratio(part: Float[Tensor, "*shape"], whole: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Part / whole, and 0 where `whole` is."""
    return torch.where(whole > 0, part / whole.clamp(min=torch.finfo(whole.dtype).tiny), torch.zeros_like(part))
