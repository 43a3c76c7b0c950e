# SPDX-License-Identifier: Apache-2.0
"""The next token of every row of a batch: the likeliest, or drawn from the row's own random stream."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moored.ops.nucleus import nucleus
from moored.randomness import named_stream
from moored.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class Draw:
    """How the tokens of one row are drawn.

    Args:
        sampling: temperature and nucleus.
        stream: the row's own; it moves on with every token.
    """

    sampling: Sampling
    stream: torch.Generator


def draws(ids: Sequence[Sequence[int]], sampling: Sampling | None, again: int = 0) -> list[Draw | None]:
    """One for each prompt, with a random stream that is named after it; a prompt that is asked again gets another one.

    Args:
        ids: the tokens of each prompt.
        sampling: how to draw; None for the likeliest tokens.
        again: how often every prompt was asked before.
    """
    if sampling is None:
        return [None] * len(ids)
    asked: Counter[tuple[int, ...]] = Counter()
    found: list[Draw | None] = []
    for prompt in map(tuple, ids):
        stream = named_stream(f"{prompt} {again + asked[prompt]}", sampling.seed)
        found.append(Draw(sampling=sampling, stream=stream))
        asked[prompt] += 1
    return found


def chosen(logits: Float[Tensor, "rows vocabulary"], rows: Sequence[Draw | None]) -> Int[Tensor, " rows"]:
    """The next token of each row.

    Args:
        logits: of the next token.
        rows: how each is drawn; None takes the likeliest token.
    """
    groups: dict[tuple[float, float], list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        if row is not None:
            groups[row.sampling.temperature, row.sampling.top_p].append(number)
    tokens = logits.argmax(-1)
    for (temperature, top_p), members in groups.items():
        streams = [row.stream for number in members if (row := rows[number]) is not None]
        uniform = torch.stack([torch.rand((), generator=stream, dtype=torch.float64) for stream in streams])
        index = torch.tensor(members, device=logits.device)
        tokens[index] = nucleus(logits[index], uniform.to(logits.device), temperature=temperature, top_p=top_p)
    return tokens
