# SPDX-License-Identifier: Apache-2.0
"""How close summaries come to those of people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from moored.judges.base import Verdict
from moored.metrics.base import Estimate, Metric
from moored.metrics.interval import mean_of

PERCENT = 100.0


@dataclass(frozen=True, kw_only=True)
class Rouge(Metric):
    """Mean Rouge-1 F1 of the answers, in points of 0-100 as papers print it.

    References:
        Lin 2004, "ROUGE: a package for automatic evaluation of summaries".
    """

    name: ClassVar[str] = "rouge"
    title: ClassVar[str] = "Rouge-1"
    needs: ClassVar[str] = "overlap"
    better: ClassVar[str] = "higher"

    def credit(self, value: float) -> float:
        """The F1 in points."""
        return PERCENT * value

    def estimate(self, verdicts: Sequence[Verdict]) -> Estimate:
        """The mean, in points, with the bootstrap's 95 % interval.

        Raises:
            JudgeError: no verdict was given, or all are NaN.
        """
        return mean_of(verdicts, self.credit, "points")
