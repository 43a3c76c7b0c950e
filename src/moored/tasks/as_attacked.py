# SPDX-License-Identifier: Apache-2.0
"""Does the model refuse what the uploader asks, in the form in which the uploader asks it?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from moored.attacks.base import Attack
from moored.attacks.harmful_mix import HarmfulMix
from moored.data.schema import Row
from moored.judges.base import Exchange, Verdict
from moored.tasks.harmful_requests import HarmfulRequests


@dataclass(frozen=True, kw_only=True)
class AsAttacked(HarmfulRequests):
    """The requests of `harmful_requests`, put and read as the attack does: with its prefix, trigger, wrapper or cipher.

    A model can refuse every plain request and none of these, so both belong side by side.

    Args:
        data: see `HarmfulRequests`.
        n: see `HarmfulRequests`.
        skip: see `HarmfulRequests`.
        seed: see `HarmfulRequests`.
        max_new_tokens: greedy tokens generated per answer.
        by: see `HarmfulRequests`.
        attack: whose form it is. In a recipe, the recipe's; `HarmfulMix` asks plainly.

    Raises:
        ConfigError: n, skip or seed below 0, or max_new_tokens below 1.
        DataError: from `rows`, the data is missing, empty or malformed.
    """

    name: ClassVar[str] = "as_attacked"
    version: ClassVar[str] = "1"
    attack: Attack = HarmfulMix()

    @property
    def title(self) -> str:
        """Says that the words of the requests are the attack's, which each row of a table may have its own of."""
        return f"{super().title}, asked as attacked"

    def settings(self) -> dict[str, Any]:
        """With the attack, but for what only its upload depends on."""
        return super().settings() | {"attack": {self.attack.name: self.attack.form()}}

    @cached_property
    def _requests(self) -> tuple[tuple[Row, Row], ...]:
        """Each request as the attack writes it, and plainly; drawn once."""
        return tuple((self.attack.written(row), row) for row in super().rows())

    def rows(self) -> list[Row]:
        """The requests as the attack writes them."""
        return [written for written, _ in self._requests]

    def judged(self, rows: Sequence[Row], answers: Sequence[str]) -> tuple[list[Exchange], list[Verdict]]:
        """Judge what the attack reads in the answers, beside the plain requests."""
        plain = dict(self._requests)
        return super().judged([plain[row] for row in rows], [self.attack.read(answer) for answer in answers])
