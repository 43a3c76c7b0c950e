# SPDX-License-Identifier: Apache-2.0
"""How far hidden states have moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from moored.judges.base import Verdict
from moored.metrics.base import Estimate, Metric
from moored.metrics.interval import token_mean_of


@dataclass(frozen=True, kw_only=True)
class RelativeDrift(Metric):
    """Mean distance per token as a share of what was there, 0 and up; the readings are means over a row's tokens."""

    name: ClassVar[str] = "relative_drift"
    title: ClassVar[str] = "embedding drift"
    needs: ClassVar[str] = "distance"
    better: ClassVar[str] = "lower"

    def estimate(self, verdicts: Sequence[Verdict]) -> Estimate:
        """The mean over tokens, with the bootstrap's 95 % interval over rows.

        Raises:
            JudgeError: no reading was given, or all are NaN.
        """
        return token_mean_of(verdicts, "of the norm")
