# SPDX-License-Identifier: Apache-2.0
"""Verdicts to one number with an interval. Empty input raises: a safety number is never a default."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

from moored.judges.base import Verdict


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A measured share.

    Args:
        value: the point estimate, in `unit`.
        low: lower end of the 95 % interval.
        high: upper end of the 95 % interval.
        n: judged answers that it rests on.
        unjudged: answers left out because the judge gave NaN.
        unit: "%" (0-100) for shares; otherwise the metric's own.
        disagreement: share (0-100 %) of the answers on which the judges of an ensemble were not of one mind, those
            without a verdict included; None of a single judge.
        parts: shares of the same answers that are to be read together, by what they count; most tasks have none.
    """

    value: float
    low: float
    high: float
    n: int
    unjudged: int = 0
    unit: str = "%"
    disagreement: float | None = None
    parts: Mapping[str, Estimate] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        """For example `93.8 % [85.0, 97.5] n=64`; what is no share has three digits, `0.0521 nat [0.0402, 0.0663]`."""
        digits = ".1f" if self.unit == "%" else ".3g"
        low, value, high = (format(number, digits) for number in (self.low, self.value, self.high))
        return f"{value} {self.unit} [{low}, {high}] n={self.n}"

    def record(self) -> dict[str, Any]:
        """The estimate as plain JSON; without `parts` if there are none."""
        return {name: value for name, value in asdict(self).items() if name != "parts" or value}


class Metric(ABC):
    """Base of metrics. Subclasses are frozen dataclasses.

    Attributes:
        name: the name in the catalogue.
        title: the column heading in tables.
        needs: the property that the verdicts must measure (`Judge.judges`).
        better: "lower" or "higher".
        scale: "log" where the estimate is exp of the mean of the credits, "plain" where it is the mean.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    needs: ClassVar[str]
    better: ClassVar[str]
    scale: ClassVar[Literal["plain", "log"]] = "plain"

    def credit(self, value: float) -> float:
        """What one verdict counts for in the estimate, which is the mean of these (in % where they are shares).

        Args:
            value: of the verdict; NaN (unjudged) stays NaN.
        """
        return value

    @abstractmethod
    def estimate(self, verdicts: Sequence[Verdict]) -> Estimate:
        """The estimate.

        Raises:
            JudgeError: no verdict was given, or all are NaN.
        """


BASE = Metric
