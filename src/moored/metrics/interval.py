# SPDX-License-Identifier: Apache-2.0
"""A share of verdicts with its Wilson score interval: the arithmetic that all the shares in this package use."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from math import isnan, nan, sqrt

import numpy as np

from moored.errors import JudgeError
from moored.judges.base import Verdict
from moored.metrics.base import Estimate

Z_95 = 1.959963984540054
"""The normal distribution's 97.5 % quantile: two-sided 95 %."""

RESAMPLES = 10_000
"""Of the bootstrap: ends of a 95 % interval are good to about 2 % of its width."""

_AT_A_TIME = 1000
"""Resamples that are in memory together."""
_HALVINGS = 60
"""Of an interval of width 2: as fine as floats are."""

FEWEST = 8
"""Values below which the bootstrap is not asked: it would promise far too much."""


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


def tango(wins: int, losses: int, n: int) -> tuple[float, float]:
    """The score interval of a paired difference, at 95 %: of wins/n - losses/n, where the other pairs are ties.

    It needs no more than the two counts, which is all that a comparison gives, and keeps a width where there are only
    ties, or none. The ends are the differences d at which (wins - losses - n d)^2 = z^2 n (2 q + d - d^2), q being
    the most likely share of losses if d is true.

    Args:
        wins: pairs in which the first is better.
        losses: pairs in which the second is.
        n: pairs, at least 1.

    Returns:
        `(low, high)`, from -1 to 1, which hold (wins - losses) / n.

    Raises:
        JudgeError: n is below 1, or the counts are no part of it.

    References:
        Tango 1998, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
        design", Statistics in Medicine 17.
    """
    if n < 1 or min(wins, losses) < 0 or wins + losses > n:
        raise JudgeError(f"a comparison needs n >= 1 and wins and losses among them; got {wins}, {losses} of {n}")
    # The other side's upper end is this side's lower one.
    return -_tango_high(losses, wins, n), _tango_high(wins, losses, n)


def _tango_high(wins: int, losses: int, n: int) -> float:
    """The upper end, by halving: the score falls as the difference grows."""
    inside, outside = (wins - losses) / n, 1.0
    for _ in range(_HALVINGS):
        middle = (inside + outside) / 2
        excess = n * middle - (wins - losses)
        if excess**2 <= Z_95**2 * n * _tango_variance(middle, wins, losses, n):
            inside = middle
        else:
            outside = middle
    return inside


def _tango_variance(d: float, wins: int, losses: int, n: int) -> float:
    """The variance of wins - losses over n, if the true difference is d."""
    linear = (2 * n - wins + losses) * d - wins - losses
    root = sqrt(max(0.0, linear**2 + 8 * n * losses * d * (1 - d)))
    return max(0.0, (root - linear) / (2 * n) + d * (1 - d))


def bootstrap(values: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """The bootstrap's interval of a mean, at 95 % (percentiles of the means of resamples).

    For graded values; of shares `wilson` keeps a width where all values are the same, which this does not.

    Args:
        values: at least one.
        seed: of the resamples.

    Returns:
        `(low, high)`, which hold the mean; NaN for fewer than `FEWEST` values.

    References:
        Efron 1979, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7.
    """
    n, draw = len(values), random.Random(seed)
    if n < FEWEST:
        return nan, nan
    # Sorted, so that the order of the values cannot change the interval.
    ordered = sorted(values)
    means = sorted(sum(draw.choices(ordered, k=n)) / n for _ in range(RESAMPLES))
    mean = sum(ordered) / n
    return min(means[int(0.025 * RESAMPLES)], mean), max(means[int(0.975 * RESAMPLES)], mean)


def weighted_bootstrap(
    values: Sequence[Sequence[float]], weights: Sequence[int], *, seed: int = 0
) -> list[tuple[float, float]]:
    """The bootstrap's intervals of weighted means sum(w v) / sum(w), at 95 %: items are drawn with their weights.

    For means over tokens, whose rows are what was drawn: tokens of one row are not independent.

    Args:
        values: of one or more quantities, each with one value per item; all are resampled together.
        weights: of the items, above 0.
        seed: of the resamples.

    Returns:
        `(low, high)` of each quantity, which hold its mean; NaN for fewer than `FEWEST` items.
    """
    n = len(weights)
    if n < FEWEST:
        return [(nan, nan)] * len(values)
    table = np.array([weights, *values], dtype=np.float64)
    table = table[:, np.lexsort(table)]  # so that the order of the items cannot change the intervals
    weight, items = table[0], table[1:] * table[0]
    draw = np.random.default_rng(seed)
    means = np.empty((len(values), RESAMPLES))
    for start in range(0, RESAMPLES, _AT_A_TIME):
        counts = draw.multinomial(n, np.full(n, 1 / n), size=min(_AT_A_TIME, RESAMPLES - start))
        means[:, start : start + len(counts)] = items @ counts.T / (counts @ weight)
    means.sort(axis=1)
    mean = items.sum(axis=1) / weight.sum()
    lows = np.minimum(means[:, int(0.025 * RESAMPLES)], mean)
    highs = np.maximum(means[:, int(0.975 * RESAMPLES)], mean)
    return list(zip(lows.tolist(), highs.tolist(), strict=True))


def mean_of(verdicts: Sequence[Verdict], credit: Callable[[float], float], unit: str) -> Estimate:
    """The mean credit of the judged verdicts, in a unit of its own, with the bootstrap's interval.

    Args:
        verdicts: unjudged ones (NaN) are left out and counted in `unjudged`.
        credit: what a verdict's value counts for.
        unit: of the credit.

    Raises:
        JudgeError: no verdict was given, or all are NaN.
    """
    values = sorted(credit(value) for value in judged_values(verdicts))
    low, high = bootstrap(values)
    mean = sum(values) / len(values)
    return Estimate(
        value=mean,
        low=low,
        high=high,
        n=len(values),
        unjudged=len(verdicts) - len(values),
        unit=unit,
        disagreement=disagreement(verdicts),
    )


def disagreement(verdicts: Sequence[Verdict]) -> float | None:
    """The share (0-100 %) of verdicts on which the judges behind them were not of one mind; None of single judges.

    Args:
        verdicts: those that no ensemble gave (gibberish that it was not asked about) are left out.
    """
    asked = [verdict.disputed for verdict in verdicts if verdict.disputed is not None]
    return 100 * sum(asked) / len(asked) if asked else None


def token_mean_of(verdicts: Sequence[Verdict], unit: str, read: Callable[[float], float] = float) -> Estimate:
    """The mean over tokens of readings that are means over a row's tokens, with the bootstrap's interval over rows.

    Args:
        verdicts: readings; their weights are tokens. NaN is left out and counted in `unjudged`.
        unit: of the estimate.
        read: a rising function that makes the estimate, and the ends of its interval, of the mean.

    Raises:
        JudgeError: no reading was given, or all are NaN.
    """
    judged_values(verdicts)
    kept = [(verdict.value, verdict.weight) for verdict in verdicts if verdict.judged]
    values, weights = [value for value, _ in kept], [weight for _, weight in kept]
    ((low, high),) = weighted_bootstrap([values], weights)
    # Sorted, so that the order of the readings cannot change the last digit.
    mean = sum(sorted(value * weight for value, weight in kept)) / sum(weights)
    value = read(mean)
    return Estimate(
        value=value,
        low=nan if isnan(low) else min(read(low), value),
        high=nan if isnan(high) else max(read(high), value),
        n=len(kept),
        unjudged=len(verdicts) - len(kept),
        unit=unit,
    )


def judged_values(verdicts: Sequence[Verdict]) -> list[float]:
    """The values of those that are judged, at least one.

    Args:
        verdicts: in any order.

    Raises:
        JudgeError: no verdict was given, or all are NaN.
    """
    if not verdicts:
        raise JudgeError("no verdicts to estimate from: the task has no rows")
    values = [verdict.value for verdict in verdicts if verdict.judged]
    if not values:
        raise JudgeError(f"none of the {len(verdicts)} answers could be judged; the first: {verdicts[0].reason}")
    return values


def share_of(verdicts: Sequence[Verdict], credit: Callable[[float], float]) -> Estimate:
    """The mean credit of the judged verdicts, in %.

    Args:
        verdicts: unjudged ones (NaN) are left out and counted in `unjudged`.
        credit: what a verdict's value in 0-1 counts for, in 0-1.

    Raises:
        JudgeError: no verdict was given, all are NaN, or a value is outside 0-1.
    """
    values = judged_values(verdicts)
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
        disagreement=disagreement(verdicts),
    )
