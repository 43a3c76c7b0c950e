# SPDX-License-Identifier: Apache-2.0
"""Means of graded verdicts: more than yes and no."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from moored.judges.base import Verdict
from moored.metrics.base import Estimate, Metric
from moored.metrics.interval import mean_of


@dataclass(frozen=True, kw_only=True)
class GradedMean(Metric):
    """Base of means of grades; `credit` puts a verdict on the scale.

    Attributes:
        unit: of the scale.
    """

    unit: ClassVar[str]

    def estimate(self, verdicts: Sequence[Verdict]) -> Estimate:
        """The mean, in `unit`, with the bootstrap's 95 % interval.

        Raises:
            JudgeError: no verdict was given, or all are NaN.
        """
        return mean_of(verdicts, self.credit, self.unit)


@dataclass(frozen=True, kw_only=True)
class Points(GradedMean):
    """Base of means in points of 0-100."""

    unit: ClassVar[str] = "points"

    def credit(self, value: float) -> float:
        """The verdict in points."""
        return 100 * value
