# SPDX-License-Identifier: Apache-2.0
"""The difference of two shares with its interval: paired where both were asked the same, else independent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, sqrt

from moored.errors import JudgeError
from moored.metrics.interval import bootstrap, wilson


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much larger the second of two means is.

    Args:
        value: second minus first, in the unit of what was compared (of shares: -1 to 1).
        low: lower end of the 95 % interval; NaN if there are too few graded pairs for one (`interval.FEWEST`).
        high: upper end, likewise.
        n: pairs that it rests on; of independent samples, the smaller n.
        method: how the interval was made.
    """

    value: float
    low: float
    high: float
    n: int
    method: str

    @property
    def noise(self) -> bool:
        """Whether the interval holds 0, or there is none: nothing can be said about which is larger."""
        return not (self.low > 0 or self.high < 0)


def paired(first: Sequence[float], second: Sequence[float], *, graded: bool = False, seed: int = 0) -> Difference:
    """The mean of `second` minus that of `first`, item by item on the same prompts.

    Of yes-or-no verdicts (all 0 or 1) the interval is Newcombe's for paired shares, which keeps a width where no
    prompt changed; of graded ones it is the bootstrap's over pairs (percentiles).

    Args:
        first: one value per prompt; a pair with a NaN is left out.
        second: likewise, same order.
        graded: whether the values are graded even if all happen to be 0 or 1, as two drifts of 0 are.
        seed: of the bootstrap.

    Raises:
        JudgeError: the lengths differ, or no pair has two values.

    References:
        Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions based on paired
        data", Statistics in Medicine 17, method 10. Efron 1979, "Bootstrap methods", Annals of Statistics 7.
    """
    if len(first) != len(second):
        raise JudgeError(f"a paired difference needs one value of each per prompt; got {len(first)} and {len(second)}")
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if not (isnan(a) or isnan(b))]
    if not pairs:
        raise JudgeError(f"none of the {len(first)} prompts was judged in both; there is nothing to compare")
    if not graded and all(value in (0, 1) for pair in pairs for value in pair):
        return _newcombe_paired(pairs)
    return _bootstrap([b - a for a, b in pairs], seed)


def independent(first: float | int, first_n: int, second: float | int, second_n: int) -> Difference:
    """The share of `second` minus that of `first`, for samples that share no prompt (or none that is known).

    Args:
        first: how many of `first_n`, partial credits included.
        first_n: trials, at least 1.
        second: likewise.
        second_n: likewise.

    Raises:
        JudgeError: a count is outside 0 to its n.

    References:
        Newcombe 1998, "Interval estimation for the difference between independent proportions", Statistics in
        Medicine 17, method 10.
    """
    (low_1, high_1), (low_2, high_2) = wilson(first, first_n), wilson(second, second_n)
    share_1, share_2 = first / first_n, second / second_n
    return Difference(
        value=share_2 - share_1,
        low=share_2 - share_1 - sqrt((share_2 - low_2) ** 2 + (high_1 - share_1) ** 2),
        high=share_2 - share_1 + sqrt((high_2 - share_2) ** 2 + (share_1 - low_1) ** 2),
        n=min(first_n, second_n),
        method="unpaired, Newcombe's interval",
    )


def _newcombe_paired(pairs: Sequence[tuple[float, float]]) -> Difference:
    n = len(pairs)
    both, neither = pairs.count((1, 1)), pairs.count((0, 0))
    only_1, only_2 = pairs.count((1, 0)), pairs.count((0, 1))
    share_1, share_2 = (both + only_1) / n, (both + only_2) / n
    (low_1, high_1), (low_2, high_2) = wilson(both + only_1, n), wilson(both + only_2, n)
    phi = _phi(both, only_1, only_2, neither)

    def half(one: float, other: float) -> float:
        return sqrt(max(0.0, one**2 - 2 * phi * one * other + other**2))

    return Difference(
        value=share_2 - share_1,
        low=share_2 - share_1 - half(share_2 - low_2, high_1 - share_1),
        high=share_2 - share_1 + half(high_2 - share_2, share_1 - low_1),
        n=n,
        method="paired, Newcombe's interval",
    )


def _phi(both: int, only_1: int, only_2: int, neither: int) -> float:
    """The correlation of the two, made smaller for continuity where it is positive; 0 where one never varies."""
    n = both + only_1 + only_2 + neither
    margins = (both + only_1) * (only_2 + neither) * (both + only_2) * (only_1 + neither)
    if not margins:
        return 0.0
    cross = both * neither - only_1 * only_2
    return (max(0.0, cross - n / 2) if cross > 0 else cross) / sqrt(margins)


def _bootstrap(differences: Sequence[float], seed: int) -> Difference:
    low, high = bootstrap(differences, seed=seed)
    method = "bootstrap over prompts" if not isnan(low) else "too few graded answers for an interval"
    value = sum(differences) / len(differences)
    return Difference(value=value, low=low, high=high, n=len(differences), method=f"paired, {method}")
