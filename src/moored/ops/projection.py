# SPDX-License-Identifier: Apache-2.0
"""The operator of Safe LoRA, C = V V^T / ||V|| with V = aligned - base, applied to a factor in one sweep over V.

Cut V into blocks of columns V_c. Then V V^T B = sum_c V_c (V_c^T B): each block is formed, used twice while it is
in the cache, and dropped. No matrix of the size of V, let alone o x o, ever exists. Factors are held with the rank
as rows: BLAS runs (r x o)(o x c) several times faster than the tall, narrow transpose.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 2**20
"""Entries of V held at a time: 4 MiB in fp32, the size of a second-level cache."""


class SafetyProjection(NamedTuple):
    """What one sweep over V yields."""

    projected: Tensor
    """C B = V V^T B / ||V||, the shape of B; zero where V is."""
    norm: float
    """||V||."""
    overlap: float
    """<B A, V>: negative means that the update undoes the alignment."""
    spread: float
    """||V V^T||, estimated from random probes (Hutchinson); NaN without probes."""


def project_on_safety(
    aligned: Float[Tensor, "o i"],
    base: Float[Tensor, "o i"],
    left: Float[Tensor, "o r"],
    right: Float[Tensor, "r i"] | None = None,
    *,
    probes: int = 0,
) -> SafetyProjection:
    """Apply C = V V^T / ||V||, V = aligned - base, to `left`.

    Costs 4 o i (r + probes) flops, one read of each weight and `BLOCK` entries of memory. Weights are subtracted in
    fp32 (fp64 if either is) whatever their own type: in bf16 most of V would be rounding.

    Args:
        aligned: the aligned model's weight; may be a memory-mapped view, which is then read once.
        base: the weight before alignment.
        left: B of the update B A, or a dense update.
        right: A; None means that `left` is the whole update.
        probes: random vectors for `spread`; relative standard error at most 1 / sqrt(2 probes), reached at rank 1.
    """
    work = torch.promote_types(torch.promote_types(aligned.dtype, base.dtype), torch.float32)
    rank = left.shape[1]
    rows = torch.cat([left.T.to(work), random_rows(probes, left.shape[0]).to(left.device, work)])
    total = torch.zeros_like(rows)
    square = overlap = 0.0
    for columns, v in _blocks(aligned, base, work):
        z = rows @ v
        total.addmm_(z, v.T)
        square += float(torch.linalg.vector_norm(v, dim=1).double().square().sum())
        partner = left[:, columns].to(work) if right is None else right[:, columns].to(work)
        overlap += float(torch.sum(partner * (v if right is None else z[:rank])))
    norm = math.sqrt(square)
    spread = float(torch.linalg.vector_norm(total[rank:].double())) / math.sqrt(probes) if probes else math.nan
    projected = total[:rank].div_(norm or 1.0)
    return SafetyProjection(projected.T, norm, overlap, spread)


def null_cosine(norm: float, spread: float, outputs: int) -> float | None:
    """The cosine that a random update already has: tr(V V^T) / (sqrt(o) ||V V^T||), in 0-1.

    For an isotropic B, <C B, B> and ||C B|| concentrate at these moments. A measured cosine means something only
    beside this number, and it differs between models and modules.

    Args:
        norm: ||V||, whose square is tr(V V^T).
        spread: ||V V^T||.
        outputs: o, the rows of V.

    Returns:
        None if V is zero.
    """
    return min(1.0, norm**2 / (math.sqrt(outputs) * spread)) if spread > 0 else None


def _blocks(
    aligned: Float[Tensor, "o i"], base: Float[Tensor, "o i"], work: torch.dtype
) -> Iterator[tuple[slice, Tensor]]:
    """Column blocks of V = aligned - base, all but the last in one reused buffer."""
    outputs, inputs = aligned.shape
    width = min(inputs, max(32, BLOCK // outputs))
    buffer = _buffer(aligned, width, work)
    for start in range(0, inputs, width):
        columns = slice(start, min(start + width, inputs))
        if columns.stop - start < width:
            buffer = _buffer(aligned, columns.stop - start, work)
        if aligned.dtype == base.dtype == work:
            torch.sub(aligned[:, columns], base[:, columns], out=buffer)
        else:
            buffer.copy_(aligned[:, columns]).sub_(base[:, columns].to(work))
        yield columns, buffer


def _buffer(like: Float[Tensor, "o i"], width: int, dtype: torch.dtype) -> Tensor:
    """An empty (o, width) block laid out as `like` is, so that filling it never transposes."""
    if like.stride(0) < like.stride(1):
        return torch.empty(width, like.shape[0], dtype=dtype, device=like.device).T
    return torch.empty(like.shape[0], width, dtype=dtype, device=like.device)


@lru_cache(maxsize=8)
def random_rows(count: int, length: int) -> Float[Tensor, "count length"]:
    """The same Gaussian rows every time, so that a repair is a function of its inputs alone.

    Args:
        count: rows.
        length: of each.
    """
    return torch.randn(count, length, generator=torch.Generator().manual_seed(0))
