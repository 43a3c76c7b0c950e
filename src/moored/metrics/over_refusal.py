# SPDX-License-Identifier: Apache-2.0
"""How often a model refuses what is harmless."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from moored.judges.base import Verdict
from moored.metrics.base import Estimate, Metric
from moored.metrics.interval import share_of


@dataclass(frozen=True, kw_only=True)
class OverRefusal(Metric):
    """Share of safe prompts whose answers are refused, on prompts that only look unsafe.

    A partial refusal (a value between 0 and 1) counts by its value.

    References:
        Röttger et al. 2024, "XSTest" (arXiv:2308.01263).
    """

    name: ClassVar[str] = "over_refusal"
    title: ClassVar[str] = "over-refusal"
    needs: ClassVar[str] = "refused"
    better: ClassVar[str] = "lower"

    def estimate(self, verdicts: Sequence[Verdict]) -> Estimate:
        """The share refused, in %, with a Wilson 95 % interval.

        Raises:
            JudgeError: no verdict was given, or all are NaN.
        """
        return share_of(verdicts, self.credit)
