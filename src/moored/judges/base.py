# SPDX-License-Identifier: Apache-2.0
"""One verdict per answer, in the same order; what cannot be judged is NaN with a reason."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """What a judge sees: a prompt, the model's answer, and for tasks with a key the right answer."""

    prompt: str
    answer: str
    reference: str = ""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One judgement.

    Args:
        value: the judge's property in 0-1 (1 = it holds), NaN if unjudgeable.
        reason: which rule or label decided; never empty when `value` is NaN.
        judge: name and version of the judge.
    """

    value: float
    reason: str
    judge: str

    @property
    def judged(self) -> bool:
        """Whether there is a verdict at all."""
        return not math.isnan(self.value)


class Judge(ABC):
    """Base of judges. Subclasses are frozen dataclasses.

    Attributes:
        name: the name in the catalogue.
        version: part of every verdict; raised when verdicts can change.
        judges: the property that `Verdict.value` measures: "refused", "harmful" or "correct".
    """

    name: ClassVar[str]
    version: ClassVar[str]
    judges: ClassVar[str]

    @abstractmethod
    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """One verdict per exchange, in the same order."""


BASE = Judge
