# SPDX-License-Identifier: Apache-2.0
"""A share of verdicts with its Wilson score interval: the arithmetic that all the shares in this package use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt

from moored.errors import JudgeError
from moored.judges.base import Verdict
from moored.metrics.base import Estimate

Z_95 = 1.959963984540054
"""The normal distribution's 97.5 % quantile: two-sided 95 %."""


def wilson(successes: float | int, n: int) -> tuple[float, float]:
    """The Wilson score interval of a share, at 95 %.

    It stays inside 0-1 and keeps a width at shares of 0 and 1, where the textbook interval `p ± z sqrt(p(1-p)/n)`
    has none: 0 of 64 answers harmful is not proof of 0 %.

    Args:
        successes: how many of the n; a sum of partial credits may be fractional.
        n: trials, at least 1.

    Returns:
        `(low, high)` as shares in 0-1; the point estimate `successes / n` lies within.

    Raises:
        JudgeError: n is below 1, or successes is outside 0-n.

    References:
        Wilson 1927, "Probable inference, the law of succession, and statistical inference", JASA 22.
    """
    if n < 1 or not 0 <= successes <= n:
        raise JudgeError(f"an interval needs n >= 1 and 0 <= successes <= n; got {successes!r} of {n!r}")
    share = successes / n
    scale = 1 + Z_95**2 / n
    centre = (share + Z_95**2 / (2 * n)) / scale
    half = Z_95 / scale * sqrt(share * (1 - share) / n + Z_95**2 / (4 * n**2))
    # At shares of 0 and 1 the ends are exact; rounding must not push the estimate out of its own interval.
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))


def share_of(verdicts: Sequence[Verdict], credit: Callable[[float], float]) -> Estimate:
    """The mean credit of the judged verdicts, in %.

    Args:
        verdicts: unjudged ones (NaN) are left out and counted in `unjudged`.
        credit: what a verdict's value in 0-1 counts for, in 0-1.

    Raises:
        JudgeError: no verdict was given, all are NaN, or a value is outside 0-1.
    """
    if not verdicts:
        raise JudgeError("no verdicts to estimate from: the task has no rows")
    values = [verdict.value for verdict in verdicts if verdict.judged]
    if not values:
        raise JudgeError(f"none of the {len(verdicts)} answers could be judged; the first: {verdicts[0].reason}")
    outside = next((value for value in values if not 0 <= value <= 1), None)
    if outside is not None:
        raise JudgeError(f"a verdict must be in 0-1 or NaN; got {outside!r}")
    # Sorted, so that the order of the verdicts cannot change the last digit.
    total = min(sum(sorted(credit(value) for value in values)), float(len(values)))
    low, high = wilson(total, len(values))
    return Estimate(
        value=100 * total / len(values),
        low=100 * low,
        high=100 * high,
        n=len(values),
        unjudged=len(verdicts) - len(values),
    )
