# SPDX-License-Identifier: Apache-2.0
"""How often a model is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from moored.judges.base import Verdict
from moored.metrics.base import Estimate, Metric
from moored.metrics.interval import share_of


@dataclass(frozen=True, kw_only=True)
class Accuracy(Metric):
    """Share of answers judged correct: the fine-tune accuracy (FA) of the papers on fine-tuning attacks."""

    name: ClassVar[str] = "accuracy"
    title: ClassVar[str] = "accuracy"
    needs: ClassVar[str] = "correct"
    better: ClassVar[str] = "higher"

    def estimate(self, verdicts: Sequence[Verdict]) -> Estimate:
        """The share correct, in %, with a Wilson 95 % interval.

        Raises:
            JudgeError: no verdict was given, or all are NaN.
        """
        return share_of(verdicts, self.credit)
