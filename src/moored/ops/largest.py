# SPDX-License-Identifier: Apache-2.0
"""The k-th largest of the values of many tensors, which are neither joined nor sorted."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

HALF = 1 << 16
"""Bins of a count: 16 of the 32 bits of a number."""


def kth_largest(parts: Callable[[], Iterable[Float[Tensor, "..."]]], k: int) -> float:
    """The k-th largest of all values together, exactly; 0 if there are fewer than k.

    Numbers >= 0 have the order of their bits. So values are counted by the upper 16 bits of each, and those that share
    the upper bits of the one wanted once more by their lower 16 bits.

    Args:
        parts: gives the tensors, in fp32 and >= 0, one at a time; called twice.
        k: >= 1.
    """
    upper, rank = _bin(_counts(_bits(part) >> 16 for part in parts()), k)
    if upper < 0:
        return 0.0
    lower, _ = _bin(_counts(bits[bits >> 16 == upper] & (HALF - 1) for bits in map(_bits, parts())), rank)
    return float(torch.tensor([upper * HALF + lower], dtype=torch.int32).view(torch.float32))


def _bits(values: Float[Tensor, "..."]) -> Int[Tensor, " values"]:
    return values.detach().abs().float().flatten().view(torch.int32)


def _counts(numbers: Iterable[Int[Tensor, " values"]]) -> Int[Tensor, " bins"]:
    counts = torch.zeros(HALF, dtype=torch.int64)
    for part in numbers:
        counts += torch.bincount(part, minlength=HALF).cpu()
    return counts


def _bin(counts: Int[Tensor, " bins"], k: int) -> tuple[int, int]:
    """The bin of the k-th number from above and its rank within that bin; -1 if there are fewer."""
    above = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(above, k))
    if place == len(above):
        return -1, 0
    return len(counts) - 1 - place, k - int(above[place] - counts[len(counts) - 1 - place])
