# SPDX-License-Identifier: Apache-2.0
"""Tokens drawn from the likeliest part of a distribution.

References:
    Holtzman et al. The Curious Case of Neural Text Degeneration. ICLR 2020. arXiv:1904.09751 (nucleus sampling).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def nucleus(
    logits: Float[Tensor, "rows vocabulary"],
    uniform: Float[Tensor, " rows"],
    *,
    temperature: float | int = 1.0,
    top_p: float | int = 1.0,
) -> Int[Tensor, " rows"]:
    """One token per row, by inversion of the distribution over its nucleus: the same number gives the same token.

    Args:
        logits: of the next token.
        uniform: in [0, 1), one per row.
        temperature: logits are divided by it; above 0.
        top_p: the nucleus is the smallest set of likeliest tokens with at least this probability, in (0, 1].
    """
    likeliest, tokens = (logits.double() / temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    reached = likeliest.cumsum(-1)
    inside = (reached - likeliest) < top_p
    mass = (likeliest * inside).sum(-1, keepdim=True)
    place = (reached <= uniform.to(reached)[:, None] * mass).sum(-1, keepdim=True)
    last = inside.sum(-1, keepdim=True) - 1
    return tokens.gather(-1, torch.minimum(place, last)).squeeze(-1)
