# SPDX-License-Identifier: Apache-2.0
"""How well a model foresees given answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import ClassVar, Literal

from moored.judges.base import Verdict
from moored.metrics.base import Estimate, Metric
from moored.metrics.interval import token_mean_of


@dataclass(frozen=True, kw_only=True)
class TokenPerplexity(Metric):
    """exp of the mean loss over all tokens together, 1 and up; the readings are losses per token of a row [nat]."""

    name: ClassVar[str] = "token_perplexity"
    title: ClassVar[str] = "perplexity"
    needs: ClassVar[str] = "loss"
    better: ClassVar[str] = "lower"
    scale: ClassVar[Literal["plain", "log"]] = "log"

    def estimate(self, verdicts: Sequence[Verdict]) -> Estimate:
        """The perplexity, with the bootstrap's 95 % interval over rows.

        Raises:
            JudgeError: no reading was given, or all are NaN.
        """
        return token_mean_of(verdicts, "per token", exp)
