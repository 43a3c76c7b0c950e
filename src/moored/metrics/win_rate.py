# SPDX-License-Identifier: Apache-2.0
"""How often a model's answer is better than another's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from moored.errors import JudgeError
from moored.judges.base import Verdict
from moored.metrics.base import Estimate, Metric
from moored.metrics.interval import judged_values, tango


@dataclass(frozen=True, kw_only=True)
class WinRate(Metric):
    """Share of comparisons won, ties half: 50 % = as good as the baseline.

    The comparison is paired (both answered the same questions), so the interval is that of a paired difference: the
    win rate is (1 + wins/n - losses/n) / 2, and the score interval of wins/n - losses/n is put through the same. Ties
    narrow it, as they should; it keeps a width where all are ties, or all wins.

    References:
        Zheng et al. 2023 (arXiv 2306.05685) for ties as half a win; Tango 1998 (see `interval.tango`).
    """

    name: ClassVar[str] = "win_rate"
    title: ClassVar[str] = "win rate"
    needs: ClassVar[str] = "preferred"
    better: ClassVar[str] = "higher"

    def estimate(self, verdicts: Sequence[Verdict]) -> Estimate:
        """The win rate, in %, with its 95 % interval.

        Raises:
            JudgeError: no verdict was given, all are NaN, or one is none of 0, 0.5 and 1.
        """
        values = judged_values(verdicts)
        wins, losses, n = values.count(1.0), values.count(0.0), len(values)
        if wins + losses + values.count(0.5) != n:
            odd = next(value for value in values if value not in (0, 0.5, 1))
            raise JudgeError(f"a comparison must be 0, 0.5 or 1, or NaN; got {odd!r}")
        low, high = tango(wins, losses, n)
        return Estimate(
            value=50 * (1 + (wins - losses) / n),
            low=50 * (1 + low),
            high=50 * (1 + high),
            n=n,
            unjudged=len(verdicts) - n,
        )
