# SPDX-License-Identifier: Apache-2.0
"""Differences of shares: the papers' worked examples, what must hold for any answers, and how often they are right."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moored.errors import JudgeError
from moored.metrics.difference import independent, paired
from moored.metrics.interval import FEWEST


def answers(both, only_first, only_second, neither):
    """Verdicts of two models on the same prompts, from the four counts of the table."""
    cells = [(1.0, 1.0)] * both + [(1.0, 0.0)] * only_first + [(0.0, 1.0)] * only_second + [(0.0, 0.0)] * neither
    return [a for a, _ in cells], [b for _, b in cells]


# Newcombe 1998, Statistics in Medicine 17:873, table II, method 10; there the first share minus the second.
@pytest.mark.parametrize(
    ("first", "first_n", "second", "second_n", "low", "high"),
    [
        (56, 70, 48, 80, 0.0524, 0.3339),
        (9, 10, 3, 10, 0.1705, 0.8090),
        (6, 7, 2, 7, 0.0582, 0.8062),
        (5, 56, 0, 29, -0.0381, 0.1926),
        (0, 10, 0, 20, -0.1611, 0.2775),
        (10, 10, 0, 10, 0.6075, 1.0000),
    ],
)
def test_independent_shares_as_published(first, first_n, second, second_n, low, high):
    found = independent(second, second_n, first, first_n)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)
    assert found.value == pytest.approx(first / first_n - second / second_n)


def test_paired_shares_as_published():
    """Newcombe 1998, Statistics in Medicine 17:2635, the worked example of method 10."""
    first, second = answers(36, 12, 2, 0)
    found = paired(second, first)
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0569, 0.3404), abs=1e-4)
    assert "Newcombe" in found.method


def test_no_change_is_no_proof_of_no_difference():
    found = paired(*answers(30, 0, 0, 34))
    assert found.value == 0
    assert found.low < -0.005
    assert found.high > 0.005
    assert found.noise


def test_answering_the_same_prompts_narrows_the_interval():
    first, second = answers(28, 12, 2, 22)
    close, apart = paired(first, second), independent(40, 64, 30, 64)
    assert close.value == pytest.approx(apart.value)
    assert apart.low < close.low < close.high < apart.high
    assert apart.noise
    assert not close.noise


@pytest.mark.parametrize("counts", [(40, 10, 4, 10), (5, 6, 3, 40), (50, 3, 9, 2)])
def test_the_paired_interval_holds_the_truth_as_often_as_it_says(counts):
    """Drawn from known shares, about 95 of 100 intervals hold the true difference."""
    n, draw = sum(counts), random.Random(0)
    first, second = answers(*counts)
    truth = (sum(second) - sum(first)) / n
    held = 0
    for _ in range(600):
        sample = draw.choices(list(zip(first, second, strict=True)), k=n)
        found = paired([a for a, _ in sample], [b for _, b in sample])
        held += found.low <= truth <= found.high
    assert 0.92 <= held / 600 <= 0.985


def test_graded_answers_are_resampled():
    first = [0.0, 0.25, 0.5, 0.75] * 12
    second = [min(1.0, value + 0.25) for value in first]
    found = paired(first, second)
    assert "bootstrap" in found.method
    assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))
    mixed = paired(first, [0.5] * 48)
    assert mixed.low < mixed.value == 0.125 < mixed.high
    # The bootstrap's interval of a mean is close to the normal one.
    spread = math.sqrt(sum((0.5 - a - 0.125) ** 2 for a in first) / 48 / 48)
    assert mixed.high - mixed.low == pytest.approx(2 * 1.96 * spread, rel=0.08)
    assert paired(first, [0.5] * 48) == mixed


def test_a_handful_of_graded_answers_has_no_interval():
    few = FEWEST - 1
    found = paired([0.5] * few, [1.0] * few)
    assert found.value == 0.5
    assert math.isnan(found.low)
    assert found.noise


def test_prompts_unjudged_in_one_are_left_out():
    first, second = answers(20, 10, 2, 8)
    found = paired([*first, math.nan, 1.0], [*second, 1.0, math.nan])
    assert found == paired(first, second)
    assert found.n == 40


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [([1.0], [1.0, 0.0], "got 1 and 2"), ([], [], "none of the 0"), ([math.nan], [1.0], "none of the 1 ")],
)
def test_nothing_to_pair_raises(first, second, said):
    with pytest.raises(JudgeError, match=said):
        paired(first, second)


@given(st.tuples(*[st.integers(0, 60)] * 4).filter(any))
def test_whichever_comes_first_the_interval_mirrors_and_holds_the_value(counts):
    first, second = answers(*counts)
    there, back = paired(first, second), paired(second, first)
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low))
    assert -1 - 1e-9 <= there.low <= there.value <= there.high <= 1 + 1e-9
