# SPDX-License-Identifier: Apache-2.0
"""The win rate, and the score interval of a paired difference from its equation."""

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moored.errors import JudgeError
from moored.judges.base import Verdict
from moored.metrics.interval import tango, wilson
from moored.metrics.win_rate import WinRate


def verdicts(*values):
    return [Verdict(value=float(value), reason="test", judge="test") for value in values]


def likelihood(wins, losses, ties, share, difference):
    """Log likelihood of the counts, if `share` of all pairs is lost and `difference` more is won."""
    shares = (share + difference, share, 1 - 2 * share - difference)
    if any(p < 0 or (p == 0 and k) for k, p in zip((wins, losses, ties), shares, strict=True)):
        return -math.inf
    return sum(k * math.log(p) for k, p in zip((wins, losses, ties), shares, strict=True) if k)


def distance(wins, losses, n, difference):
    """How many standard errors the counts are away from a true difference; the most likely share by searching."""
    low, high = max(0.0, -difference), (1 - difference) / 2
    for _ in range(200):  # the likelihood has one top
        third = (high - low) / 3
        left, right = low + third, high - third
        if likelihood(wins, losses, n - wins - losses, left, difference) < likelihood(
            wins, losses, n - wins - losses, right, difference
        ):
            low = left
        else:
            high = right
    variance = 2 * low + difference - difference**2
    return abs(wins - losses - n * difference) / math.sqrt(n * variance)


@pytest.mark.parametrize(("wins", "losses", "n"), [(12, 2, 50), (1, 9, 30), (5, 5, 10), (0, 7, 20), (40, 30, 80)])
def test_the_ends_are_where_the_difference_is_z_standard_errors_away(wins, losses, n):
    for end in tango(wins, losses, n):
        assert distance(wins, losses, n, end) == pytest.approx(1.959964, abs=1e-4)


def test_ties_alone_keep_a_width():
    z2 = 1.959963984540054**2
    assert tango(0, 0, 50) == pytest.approx((-z2 / (50 + z2), z2 / (50 + z2)), abs=1e-9)


def test_without_ties_it_is_wilsons():
    for wins, n in ((0, 12), (7, 12), (12, 12)):
        ends = [(1 + end) / 2 for end in tango(wins, n - wins, n)]
        assert ends == pytest.approx(wilson(wins, n), abs=1e-9)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.integers(0, n), st.just(n))))
def test_it_holds_the_difference_stays_in_range_and_mirrors(case):
    wins, losses, n = case
    losses = min(losses, n - wins)
    low, high = tango(wins, losses, n)
    assert -1 <= low <= (wins - losses) / n <= high <= 1
    assert high > low
    assert tango(losses, wins, n) == (-high, -low)


@pytest.mark.parametrize(("wins", "losses", "n"), [(0, 0, 0), (-1, 0, 3), (2, 2, 3), (0, -1, 3)])
def test_nonsense_is_refused(wins, losses, n):
    with pytest.raises(JudgeError):
        tango(wins, losses, n)


def test_ties_count_half_and_narrow_the_interval():
    got = WinRate().estimate(verdicts(1, 1, 0, 0.5, math.nan))
    assert (got.value, got.n, got.unjudged, got.unit) == (62.5, 4, 1, "%")
    even, tied = WinRate().estimate(verdicts(*[1, 0] * 20)), WinRate().estimate(verdicts(*[0.5] * 40))
    assert even.value == tied.value == 50
    assert tied.high - tied.low < even.high - even.low


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, math.nan]), min_size=1, max_size=40))
def test_order_never_matters_and_the_value_is_the_mean_credit(values):
    values = [*values, 0.5]
    got = WinRate().estimate(verdicts(*values))
    assert got == WinRate().estimate(verdicts(*Random(1).sample(values, len(values))))
    judged = [WinRate().credit(value) for value in values if not math.isnan(value)]
    assert got.value == pytest.approx(100 * sum(judged) / len(judged))
    assert 0 <= got.low <= got.value <= got.high <= 100


@pytest.mark.parametrize("values", [[], [math.nan], [0.25], [1, 2]])
def test_what_cannot_be_estimated_raises(values):
    with pytest.raises(JudgeError):
        WinRate().estimate(verdicts(*values))
