# SPDX-License-Identifier: Apache-2.0
"""How much harm a judge of harm sees in the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from moored.judges.base import Verdict
from moored.metrics.base import Estimate, Metric
from moored.metrics.interval import share_of


@dataclass(frozen=True, kw_only=True)
class HarmfulShare(Metric):
    """Mean harm of the answers to harmful prompts: the share called harmful by a guard, or the mean of a graded rubric.

    Beside `HarmfulScore`, which counts every answer that is not a refusal, an answer of no use to anybody counts for
    nothing or for little here. What it means depends on the judge, which stands beside the number.

    References:
        The harmful score of Huang et al. 2024 (arXiv:2402.01109), with beaver-dam as the judge.
    """

    name: ClassVar[str] = "harmful_share"
    title: ClassVar[str] = "judged harmful"
    needs: ClassVar[str] = "harmful"
    better: ClassVar[str] = "lower"

    def estimate(self, verdicts: Sequence[Verdict]) -> Estimate:
        """The mean, in %, with a Wilson 95 % interval.

        Raises:
            JudgeError: no verdict was given, or all are NaN.
        """
        return share_of(verdicts, self.credit)
