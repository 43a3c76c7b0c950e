# SPDX-License-Identifier: Apache-2.0
"""How far vectors have moved, as a share of their length and as an angle; exactly 0 where they have not."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def relative_distance(
    start: Float[Tensor, "tokens width"], now: Float[Tensor, "tokens width"]
) -> Float[Tensor, " tokens"]:
    """||now - start|| / ||start|| of each row; infinite where a start of 0 has moved.

    Args:
        start: before.
        now: after.
    """
    moved, length = (now - start).norm(dim=-1), start.norm(dim=-1)
    return torch.where(moved == 0, moved, moved / length)


def angle(start: Float[Tensor, "tokens width"], now: Float[Tensor, "tokens width"]) -> Float[Tensor, " tokens"]:
    """1 - cos(start, now) of each row, 0 to 2, as ||u - v||^2 / 2 of the unit vectors, which has no rounding at 0.

    Args:
        start: before.
        now: after.
    """
    u, v = (torch.nn.functional.normalize(each, dim=-1) for each in (start, now))
    return (u - v).square().sum(dim=-1) / 2
