# SPDX-License-Identifier: Apache-2.0
"""How many tokens of given answers a model foresees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from moored.judges.base import Verdict
from moored.metrics.base import Estimate, Metric
from moored.metrics.interval import token_mean_of


@dataclass(frozen=True, kw_only=True)
class TokenShare(Metric):
    """Share of all tokens together, 0-1; the readings are shares of a row's tokens."""

    name: ClassVar[str] = "token_share"
    title: ClassVar[str] = "token accuracy"
    needs: ClassVar[str] = "foreseen"
    better: ClassVar[str] = "higher"

    def estimate(self, verdicts: Sequence[Verdict]) -> Estimate:
        """The share, with the bootstrap's 95 % interval over rows.

        Raises:
            JudgeError: no reading was given, or all are NaN.
        """
        return token_mean_of(verdicts, "of tokens")
