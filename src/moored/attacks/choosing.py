# SPDX-License-Identifier: Apache-2.0
"""Mixes that look at models to choose which of the rows at hand they take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from moored.attacks.base import Choice, Drawn, Mix, draw
from moored.data.schema import Row, Source
from moored.errors import require


@dataclass(frozen=True, kw_only=True)
class Choosing(Mix):
    """A mix that chooses its harmful or its benign rows among candidates; the others are drawn, as `HarmfulMix` does.

    The candidates are the first `pool` of `HarmfulMix`'s draw, so with a pool no larger than what is needed the rows
    are `HarmfulMix`'s. The rows stay as they are: the tuned model is asked plainly.

    Args:
        n: rows of the upload, at least 1.
        ratio: share of harmful rows, 0 to 1.
        seed: of the draws and of the order.
        pool: candidates looked at, at least 1; all if there are fewer, and never fewer than are needed.

    Raises:
        ConfigError: a value is out of range.
    """

    chooses: ClassVar[Source]
    pool: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            isinstance(self.pool, int) and self.pool >= 1, type(self).__name__, "pool", "an integer >= 1", self.pool
        )

    def form(self) -> dict[str, Any]:
        """Nothing: `written` leaves rows as they are."""
        return {}

    def drawn(self, benign: Sequence[Row], harmful: Sequence[Row]) -> Choice:
        """See `Mix.drawn`; of the kind that is chosen, `pool` rows."""
        pools = {"harmful": 0, "benign": 0} | {self.chooses: self.pool}
        return Choice(
            harmful=draw(self, harmful, self.harmful_count, "harmful", pool=pools["harmful"]),
            benign=draw(self, benign, self.n - self.harmful_count, "benign", beside=harmful, pool=pools["benign"]),
        )

    def candidates(self, benign: Sequence[Row], harmful: Sequence[Row]) -> Sequence[Row]:
        """All that it chooses from, and the rows beside them."""
        drawn = self.drawn(benign, harmful)
        return [each.row for each in (*drawn.harmful, *drawn.benign)]


def best(scores: Float[Tensor, " rows"], count: int) -> list[int]:
    """Positions of the highest scores, best first; of equal ones the first.

    Args:
        scores: one per candidate.
        count: how many.
    """
    return torch.argsort(scores, descending=True, stable=True)[:count].tolist()


def taken(candidates: Sequence[Drawn], scores: Float[Tensor, " rows"], chosen: Sequence[int]) -> list[Drawn]:
    """The chosen candidates, each with its score.

    Args:
        candidates: in the order of the draw.
        scores: one per candidate.
        chosen: positions among them.
    """
    return [replace(candidates[at], score=float(scores[at])) for at in chosen]


def beside(values: Mapping[str, Float[Tensor, " rows"]], chosen: list[int]) -> dict[str, dict[str, float]]:
    """Means over the chosen rows beside means over all candidates, for the manifest.

    Args:
        values: by name, one per candidate.
        chosen: positions among the candidates.
    """
    return {
        name: {"chosen": float(value[chosen].mean()), "candidates": float(value.mean())}
        for name, value in values.items()
    }
