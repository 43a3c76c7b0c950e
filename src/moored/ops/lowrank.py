# SPDX-License-Identifier: Apache-2.0
"""Norms and angles of low-rank products B A, without ever forming the product.

With a thin QR of A^T = Q R the rows of A are R^T times orthonormal rows, so ||X A|| = ||X R^T|| for every X. The
Gram form tr(A^T B^T B A) would square the condition number and return NaN on nearly cancelling factors in fp32.
A dense update has no right factor: there `right` is None, read as the identity.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def compress(left: Float[Tensor, "o r"], right: Float[Tensor, "r i"] | None) -> Float[Tensor, "o k"]:
    """An o x k matrix, k <= r, with the inner products of `left @ right`: <X A, Y A> = <X R^T, Y R^T>.

    Args:
        left: B, or anything to be multiplied with A.
        right: A; None means the identity.
    """
    if right is None:
        return left
    triangle = torch.linalg.qr(right.T.double(), mode="r").R
    return left.double() @ triangle.T


def product_norm(left: Float[Tensor, "o r"], right: Float[Tensor, "r i"] | None) -> float:
    """||B A||, the Frobenius norm."""
    matrix = compress(left, right)
    return math.sqrt(inner(matrix, matrix))


def cosine(a: Float[Tensor, "o k"], b: Float[Tensor, "o k"]) -> float | None:
    """<a, b> / (||a|| ||b||) in -1..1; 0 when `a` vanishes and None when `b` does, as then there is no angle to b."""
    a_norm, b_norm = math.sqrt(inner(a, a)), math.sqrt(inner(b, b))
    if b_norm == 0:
        return None
    return max(-1.0, min(1.0, inner(a, b) / a_norm / b_norm)) if a_norm else 0.0


def product_cosine(
    b1: Float[Tensor, "o r"], a1: Float[Tensor, "r i"], b2: Float[Tensor, "o r"], a2: Float[Tensor, "r i"]
) -> float | None:
    """The cosine of B1 A1 and B2 A2 from r x r matrices; 0 when the first vanishes and None when the second does.

    Args:
        b1: B1.
        a1: A1.
        b2: B2.
        a2: A2.
    """
    one, two = product_norm(b1, a1), product_norm(b2, a2)
    if two == 0:
        return None
    overlap = float(((b1.double().T @ b2.double()) * (a1.double() @ a2.double().T)).sum())
    return max(-1.0, min(1.0, overlap / one / two)) if one else 0.0


def inner(a: Float[Tensor, "o k"], b: Float[Tensor, "o k"]) -> float:
    """<a, b> = sum_jk a_jk b_jk in fp64, a few rows at a time, so that a dense update is never copied."""
    rows = max(1, 2**18 // max(1, a.shape[1]))
    return sum(float(torch.sum(x.double() * y.double())) for x, y in zip(a.split(rows), b.split(rows), strict=True))
