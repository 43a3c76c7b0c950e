# SPDX-License-Identifier: Apache-2.0
"""How far a model's next tokens are from those of the model that it was tuned from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from moored.judges.base import Verdict
from moored.metrics.base import Estimate, Metric
from moored.metrics.interval import token_mean_of


@dataclass(frozen=True, kw_only=True)
class TokenDivergence(Metric):
    """Mean Kullback-Leibler divergence per token [nat], 0 and up; the readings are means over a row's tokens."""

    name: ClassVar[str] = "token_divergence"
    title: ClassVar[str] = "KL to aligned"
    needs: ClassVar[str] = "divergence"
    better: ClassVar[str] = "lower"

    def estimate(self, verdicts: Sequence[Verdict]) -> Estimate:
        """The mean over tokens, with the bootstrap's 95 % interval over rows.

        Raises:
            JudgeError: no reading was given, or all are NaN.
        """
        return token_mean_of(verdicts, "nat")
