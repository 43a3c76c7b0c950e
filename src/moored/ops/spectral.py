# SPDX-License-Identifier: Apache-2.0
"""Filters of the directions of a safety vector: f(V V^T) B = U f(S) U^T B for V = U S Q^T, without any o x o matrix.

Safe LoRA's own operator has f = s^2 / ||V|| (`ops.projection`). It depends on the length of V, so it shrinks what it
projects by an amount that means nothing. These depend on the shape of the spectrum alone, and lie in 0-1.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from moored.errors import CheckpointError
from moored.ops.truncation import leading

TOLERANCE, SWEEPS = 1e-6, 500
"""Relative residual at which conjugate gradients stop, and the most products with V V^T that they take."""


def scale_free(v: Float[Tensor, "o i"], left: Float[Tensor, "o r"]) -> Float[Tensor, "o r"]:
    """F = (s / s_max)^2: the paper's filter, scaled so that the first direction passes whole.

    Args:
        v: V, not zero.
        left: B.
    """
    return v @ (v.T @ left) / largest(v) ** 2


def first_directions(v: Float[Tensor, "o i"], left: Float[Tensor, "o r"], k: int) -> Float[Tensor, "o r"]:
    """F = 1 for the k largest singular values, else 0: a real projector.

    Args:
        v: V, not zero.
        left: B.
        k: directions kept, >= 1.
    """
    u, _ = directions(v, k)
    return u @ (u.T @ left)


def directions(v: Float[Tensor, "o i"], k: int) -> tuple[Float[Tensor, "o k"], Float[Tensor, "k i"]]:
    """U_k and Q_k^T of V = U S Q^T; fewer than k where V has no more sides.

    Args:
        v: V, not zero.
        k: directions, those of the largest singular values.
    """
    scaled, q = leading(v, k)
    return scaled / scaled.norm(dim=0).clamp(min=torch.finfo(scaled.dtype).tiny), q


def ridge(v: Float[Tensor, "o i"], left: Float[Tensor, "o r"], share: float) -> Float[Tensor, "o r"]:
    """F = s^2 / (s^2 + (share s_max)^2): passes directions well above `share` of the largest, and stops those below.

    f(V V^T) B = B - c X with (V V^T + c) X = B, c = (share s_max)^2, solved by conjugate gradients: it takes about
    1 / share products with V V^T.

    Args:
        v: V, not zero.
        left: B.
        share: > 0.

    Raises:
        CheckpointError: no convergence, as with a share near 0.
    """
    c = (share * largest(v)) ** 2
    x = torch.zeros_like(left)
    residual = left.clone()
    direction, square = residual.clone(), residual.square().sum(dim=0)
    goal = (TOLERANCE**2) * square.clamp(min=torch.finfo(left.dtype).tiny)
    for _ in range(SWEEPS):
        if bool((square <= goal).all()):
            return left - c * x
        image = v @ (v.T @ direction) + c * direction
        step = square / (direction * image).sum(dim=0).clamp(min=torch.finfo(left.dtype).tiny)
        x += step * direction
        residual -= step * image
        last, square = square, residual.square().sum(dim=0)
        direction = residual + direction * (square / last.clamp(min=torch.finfo(left.dtype).tiny))
    raise CheckpointError(f"ridge={share} leaves too small a shift for {SWEEPS} conjugate gradient steps; raise it")


def largest(v: Float[Tensor, "o i"]) -> float:
    """The largest singular value."""
    return float(leading(v, 1)[0].norm())
