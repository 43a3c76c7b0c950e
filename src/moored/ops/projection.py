# SPDX-License-Identifier: Apache-2.0
"""The operator of Safe LoRA, C = V V^T / ||V|| with V = aligned - base, applied to a factor in two sweeps over V.

V V^T B = V (V^T B): the first sweep sums up V^T B, the second multiplies with V again. Each cuts V into blocks that lie
in one piece in the files, forms a block in the cache, and drops it: to read bf16 and subtract twice takes a fraction
of the time of keeping V. No matrix of the size of V, let alone o x o, ever exists. Factors are held with the rank as
rows: BLAS runs (r x o)(o x i) several times faster than the tall, narrow transpose.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 2**19
"""Entries of V held at a time: 2 MiB in fp32, which a second-level cache holds beside what is read."""
FAR_BLOCK = 2**25
"""Entries of V held at a time on another device: 128 MiB in fp32, few enough transfers to keep it busy."""


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
    device: torch.device | None = None,
) -> SafetyProjection:
    """Apply C = V V^T / ||V||, V = aligned - base, to `left`.

    Costs 4 o i (r + probes) flops, two sweeps over each weight and `BLOCK` entries of memory. Weights are subtracted in
    fp32 (fp64 if either is) whatever their own type: in bf16 most of V would be rounding.

    Args:
        aligned: the aligned model's weight; may be a memory-mapped view, whose pages are read from disk once.
        base: the weight before alignment.
        left: B of the update B A, or a dense update.
        right: A; None means that `left` is the whole update.
        probes: random vectors for `spread`; relative standard error at most 1 / sqrt(2 probes), reached at rank 1.
        device: where the products are made; None: where `left` is. Blocks of the weights are moved there in their own
            type, twice. What is returned is where `left` is.
    """
    place = device or left.device
    work = torch.promote_types(torch.promote_types(aligned.dtype, base.dtype), torch.float32)
    rank, (outputs, inputs) = left.shape[1], aligned.shape
    left_rows = torch.cat([left.T.to(place, work), random_rows(probes, outputs).to(place, work)])
    z = torch.zeros(rank + probes, inputs, dtype=work, device=place)
    total = torch.zeros_like(left_rows)
    square = overlap = 0.0
    for rows, columns, v in _blocks(aligned, base, work, place):
        z[:, columns].addmm_(left_rows[:, rows], v)
        square += float(torch.linalg.vector_norm(v, dim=1).double().square().sum())
        overlap += float(torch.sum(left[rows, columns].to(place, work) * v)) if right is None else 0.0
    if right is not None:
        overlap = float(torch.sum(right.to(place, work) * z[:rank]))
    for rows, columns, v in _blocks(aligned, base, work, place):
        total[:, rows].addmm_(z[:, columns], v.T)
    norm = math.sqrt(square)
    spread = float(torch.linalg.vector_norm(total[rank:].double())) / math.sqrt(probes) if probes else math.nan
    projected = total[:rank].div_(norm or 1.0).to(left.device)
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
    aligned: Float[Tensor, "o i"], base: Float[Tensor, "o i"], work: torch.dtype, place: torch.device
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Blocks of V = aligned - base at a place, with rows and columns: whole ones of either, as they are stored."""
    if aligned.stride(0) < aligned.stride(1):
        for columns, rows, v in _blocks(aligned.T, base.T, work, place):
            yield rows, columns, v.T
        return
    outputs, inputs = aligned.shape
    block = BLOCK if place == aligned.device else FAR_BLOCK
    height = min(outputs, max(32, block // inputs))
    buffer = torch.empty(height, inputs, dtype=work, device=place)
    for start in range(0, outputs, height):
        rows = slice(start, min(start + height, outputs))
        own, other = aligned[rows].to(place), base[rows].to(place)
        yield rows, slice(0, inputs), buffer[: rows.stop - start].copy_(own).sub_(other)


@lru_cache(maxsize=8)
def random_rows(count: int, length: int) -> Float[Tensor, "count length"]:
    """The same Gaussian rows every time, so that a repair is a function of its inputs alone.

    Args:
        count: rows.
        length: of each.
    """
    return torch.randn(count, length, generator=torch.Generator().manual_seed(0))
