# SPDX-License-Identifier: Apache-2.0
"""The best rank-k approximation of an update, dense or a low-rank product B A, exactly and in fp64.

The truncation of M = U S V^T is U_k S_k V_k^T = U_k U_k^T M. For M = B A it is (U_k U_k^T B) A: another B with the
same A, so it never takes more rank than M has, and no o x i matrix is formed.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from moored.ops.lowrank import compress


def truncated(matrix: Float[Tensor, "*batch o i"], k: int) -> Float[Tensor, "*batch o i"]:
    """U_k S_k V_k^T, of each matrix of a batch by itself; the matrix itself if `k` is not less than its sides.

    From the eigenvectors of the Gram matrix of the smaller side: as exact in fp64 as a decomposition of the fp32
    matrix itself, and several times cheaper where one side is long.

    Args:
        matrix: M.
        k: singular values kept, the largest; >= 1.
    """
    if k >= min(matrix.shape[-2:]):
        return matrix
    m = _fp64(matrix)
    m = m if m.shape[-2] <= m.shape[-1] else m.mT
    left = _first(m, k)
    kept = left @ (left.mT @ m)
    return (kept if matrix.shape[-2] <= matrix.shape[-1] else kept.mT).to(matrix)


def truncated_left(left: Float[Tensor, "o r"], right: Float[Tensor, "r i"], k: int) -> Float[Tensor, "o r"]:
    """U_k U_k^T B, which times A is the rank-k truncation of B A.

    Args:
        left: B.
        right: A.
        k: singular values kept, the largest; >= 1.
    """
    b = _fp64(left)
    directions = torch.linalg.svd(compress(b, _fp64(right)), full_matrices=False).U[:, :k]
    return (directions @ (directions.T @ b)).to(left)


EXACT_SIDE = 1024
"""Longest shorter side of a matrix whose Gram matrix is decomposed whole."""
OVERSAMPLED, POWERS = 10, 8
"""Further directions and power iterations of the range finder (Halko, Martinsson, Tropp, arXiv 0909.4061)."""


def leading(matrix: Float[Tensor, "o i"], k: int) -> tuple[Float[Tensor, "o k"], Float[Tensor, "k i"]]:
    """The rank-k truncation as factors U_k S_k and Q_k^T; fewer than k where the matrix has no more sides.

    Exact in fp64 where one side is at most `EXACT_SIDE`, else by a range finder with a fixed seed, in fp32.

    Args:
        matrix: M = U S Q^T.
        k: singular values kept, the largest; >= 1.
    """
    k = min(k, *matrix.shape)
    if matrix.shape[0] > matrix.shape[1]:
        right, left = leading(matrix.T, k)
        norms = right.norm(dim=0).clamp(min=torch.finfo(right.dtype).tiny)
        return left.T * norms, (right / norms).T
    exact = matrix.shape[0] <= EXACT_SIDE
    m = _fp64(matrix) if exact else matrix.float()
    u = _first(m, k) if exact else _range(m, k)
    rows = u.T @ m
    norms = rows.norm(dim=1, keepdim=True)
    q = rows / norms.clamp(min=torch.finfo(rows.dtype).tiny)
    return (u * norms.T).to(matrix), q.to(matrix)


def _first(m: Float[Tensor, "*batch o i"], k: int) -> Float[Tensor, "*batch o k"]:
    """The first k left singular vectors, from the Gram matrix of the rows; the first of them last."""
    return torch.linalg.eigh(m @ m.mT).eigenvectors[..., -k:]


def _range(m: Float[Tensor, "o i"], k: int) -> Float[Tensor, "o k"]:
    """The first k left singular vectors, nearly."""
    start = torch.randn(m.shape[1], k + OVERSAMPLED, generator=torch.Generator().manual_seed(0)).to(m)
    q = torch.linalg.qr(m @ start).Q
    for _ in range(POWERS):
        q = torch.linalg.qr(m @ (m.T @ q)).Q
    return q @ _first(q.T @ m, k)


def _fp64(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """In fp64; on the CPU where the device has none (Apple's)."""
    return (x.cpu() if x.device.type == "mps" else x).double()
