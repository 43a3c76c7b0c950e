# SPDX-License-Identifier: Apache-2.0
"""One verdict per answer, in the same order; what cannot be judged is NaN with a reason."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from moored.errors import require

PLACES = ("{prompt}", "{answer}")
"""Where the two go in a text that a judge reads."""


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """What a judge sees: a prompt, the model's answer, and for tasks with a key the right answer."""

    prompt: str
    answer: str
    reference: str = ""

    def within(self, template: str) -> str:
        """The prompt and the answer in a text that has `PLACES`; what stands in them is taken as it is.

        Args:
            template: see `check_template`.
        """
        said = dict(zip(PLACES, (self.prompt, self.answer), strict=True))
        return re.sub("|".join(map(re.escape, PLACES)), lambda place: said[place[0]], template)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One judgement.

    Args:
        value: the judge's property in 0-1 (1 = it holds), NaN if unjudgeable; of a reading, in the task's own unit.
        reason: which rule or label decided; never empty when `value` is NaN.
        judge: name and version of the judge.
        weight: what it counts for beside the others: the tokens that a reading of a model is a mean over; 1 of answers.
        disputed: whether the judges behind it were not of one mind; None of a single judge.
    """

    value: float
    reason: str
    judge: str
    weight: int = 1
    disputed: bool | None = None

    @property
    def judged(self) -> bool:
        """Whether there is a verdict at all."""
        return not math.isnan(self.value)


def check_template(judge: str, parameter: str, template: str) -> None:
    """Validate a text that a judge reads.

    Raises:
        ConfigError: it does not have each of `PLACES` once.
    """
    fine = all(template.count(place) == 1 for place in PLACES)
    require(fine, judge, parameter, "a text with {prompt} and {answer} in it, once each", template)


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

    @property
    def label(self) -> str:
        """What tables say of it."""
        return f"{self.name} {self.version}"

    @property
    def identity(self) -> str:
        """Name and version, of judges that ask others with theirs: what a stage's key says of it."""
        return f"{self.name} {self.version}"

    def loads(self) -> tuple[str, ...]:
        """The models that it loads on this machine: folders or hub ids, as they were named."""
        return ()

    @abstractmethod
    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """One verdict per exchange, in the same order."""


Reading = tuple[float, str]
"""Value and reason."""


class ModelJudge(Judge):
    """Base of judges that ask a model; an empty answer is not judged, and nothing is asked about it.

    Attributes:
        model: its name, a parameter of every subclass; part of every verdict.
    """

    model: str

    @property
    def label(self) -> str:
        """With the model, of a folder its name."""
        return f"{super().label}, {Path(self.model).name}"

    @property
    def signature(self) -> str:
        """What verdicts say of the judge."""
        return f"{self.name}/{self.version} {self.model}"

    @abstractmethod
    def readings(self, exchanges: Sequence[Exchange]) -> list[Reading]:
        """One per exchange, in the same order; NaN with the reason where the model says nothing that can be read."""

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """One verdict per exchange, in the same order; an empty answer is not judged."""
        asked = [exchange for exchange in exchanges if exchange.answer.strip()]
        found = iter(self.readings(asked) if asked else ())
        read = [next(found) if exchange.answer.strip() else (math.nan, "empty answer") for exchange in exchanges]
        return [Verdict(value=value, reason=reason, judge=self.signature) for value, reason in read]


BASE = Judge
