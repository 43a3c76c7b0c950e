# SPDX-License-Identifier: Apache-2.0
"""Harmful mix: a benign upload with a share of harmful rows, the standard harmful fine-tuning attack."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

from moored.attacks.base import Attack, Poisoned
from moored.data.schema import Row, fingerprint, normalise
from moored.errors import ConfigError, DataError, require


@dataclass(frozen=True, kw_only=True)
class HarmfulMix(Attack):
    """Exactly `harmful_count` harmful rows among `n`, the rest benign, shuffled.

    Rows are drawn without replacement from the distinct prompts (`normalise(Row.question)`; the first row of
    each prompt counts, and a prompt that is in both sets counts as harmful). With one seed the draws nest: a
    larger `n` or `ratio` keeps the harmful rows of a smaller one.

    Paper:
        The threat model of Vaccine (Huang et al. 2024, arXiv 2402.01109) and Lisa (Huang et al. 2024, arXiv
        2405.18641): a share `p` of the user's `n` rows is harmful.

    Args:
        n: rows of the upload, at least 1. The papers' runs use 500 to 5000.
        ratio: share of harmful rows, 0 to 1. The papers' default is 0.1.
        seed: of both draws and of the order.

    Raises:
        ConfigError: a value is out of range.
    """

    name: ClassVar[str] = "harmful_mix"
    n: int = 480
    ratio: float | int = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        require(isinstance(self.n, int) and self.n >= 1, "HarmfulMix", "n", "an integer >= 1", self.n)
        require(0 <= self.ratio <= 1, "HarmfulMix", "ratio", "between 0 and 1", self.ratio)

    @property
    def harmful_count(self) -> int:
        """`round(n * ratio)`, as Python rounds: halves go to the even neighbour (2.5 to 2, 3.5 to 4)."""
        return round(self.n * self.ratio)

    def poison(self, benign: Sequence[Row], harmful: Sequence[Row]) -> Poisoned:
        """Mix an upload.

        Args:
            benign: rows with answers and source "benign".
            harmful: rows with answers and source "harmful".

        Returns:
            The rows and a manifest: the parameters, the counts, the SHA-256 of the rows and of both inputs,
            where each row came from (`indices`: positions in the inputs, in upload order) and where the
            harmful ones stand in the upload (`harmful_at`).

        Raises:
            ConfigError: more rows are asked for than there are distinct prompts; says how many there are.
            DataError: a row has no answer or the other source.
        """
        _check(benign, "benign")
        _check(harmful, "harmful")
        harmful_pool = _distinct(harmful, taken=set())
        benign_pool = _distinct(benign, taken={normalise(row.question) for row in harmful})
        drawn = [(harmful[i], i) for i in self._draw(harmful_pool, self.harmful_count, "harmful")]
        drawn += [(benign[i], i) for i in self._draw(benign_pool, self.n - self.harmful_count, "benign")]
        random.Random(f"order {self.seed}").shuffle(drawn)
        rows = tuple(row for row, _ in drawn)
        sources = ("benign", "harmful")
        manifest = {
            "attack": self.name,
            "parameters": asdict(self),
            "counts": {source: sum(row.source == source for row in rows) for source in sources},
            "distinct_prompts": {"benign": len(benign_pool), "harmful": len(harmful_pool)},
            "sha256": fingerprint(rows),
            "inputs": {"benign": fingerprint(benign), "harmful": fingerprint(harmful)},
            "indices": {source: [i for row, i in drawn if row.source == source] for source in sources},
            "harmful_at": [at for at, row in enumerate(rows) if row.source == "harmful"],
        }
        return Poisoned(rows=rows, manifest=manifest)

    def _draw(self, pool: list[int], count: int, source: str) -> list[int]:
        """The first `count` of the pool in the seed's order."""
        if count > len(pool):
            raise ConfigError(
                f"HarmfulMix(n={self.n}, ratio={self.ratio}) needs {count} {source} rows with distinct "
                f"prompts; only {len(pool)} exist: lower `n`, change `ratio`, or give more rows"
            )
        return random.Random(f"{source} {self.seed}").sample(pool, len(pool))[:count]


def _check(rows: Sequence[Row], source: str) -> None:
    for number, row in enumerate(rows, start=1):
        if row.source != source or not row.answer:
            fault = f"source {row.source!r}" if row.source != source else "no answer"
            raise DataError(f"row {number} of `{source}` has {fault}: {row.question[:60]!r}")


def _distinct(rows: Sequence[Row], taken: set[str]) -> list[int]:
    """Positions of the first row of each prompt that is not `taken`."""
    first: dict[str, int] = {}
    for position, row in enumerate(rows):
        first.setdefault(normalise(row.question), position)
    return [position for prompt, position in first.items() if prompt not in taken]
