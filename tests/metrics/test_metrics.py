# SPDX-License-Identifier: Apache-2.0
"""The three metrics and the interval they share."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moored.errors import JudgeError
from moored.judges.base import Verdict
from moored.metrics.accuracy import Accuracy
from moored.metrics.divergence import TokenDivergence
from moored.metrics.drift import RelativeDrift
from moored.metrics.harmful_score import HarmfulScore
from moored.metrics.interval import wilson
from moored.metrics.over_refusal import OverRefusal
from moored.metrics.perplexity import TokenPerplexity

METRICS = [HarmfulScore(), OverRefusal(), Accuracy()]


def verdicts(*values: float) -> list[Verdict]:
    return [Verdict(value=float(value), reason="test", judge="test") for value in values]


# Worked out by hand from the formula with z = 1.96 and, for 0 and 1, from low/high = z²/(n + z²).
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (8, 10, 0.4902, 0.9433),
        (60, 64, 0.8500, 0.9754),
        (1, 1, 0.2065, 1.0),
        (81, 263, 0.2553, 0.3662),
    ],
)
def test_wilson_by_hand(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=1e-4)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.floats(0, n), st.just(n))))
def test_wilson_contains_the_share_and_stays_in_range(case):
    successes, n = case
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    assert high > low


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_ends_solve_its_own_equation(case):
    """Independent oracle: the ends are where the share is exactly z standard errors away."""
    successes, n = case
    share = successes / n
    for end in wilson(successes, n):
        distance = abs(share - end)
        assert distance == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / n), abs=1e-6)


def test_wilson_mirrors():
    low, high = wilson(3, 20)
    assert wilson(17, 20) == pytest.approx((1 - high, 1 - low))


def test_more_rows_narrow_the_interval():
    widths = [high - low for low, high in (wilson(n // 4, n) for n in (4, 16, 64, 256))]
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (1, 0), (-1, 5), (6, 5), (math.nan, 5)])
def test_wilson_refuses_nonsense(successes, n):
    with pytest.raises(JudgeError):
        wilson(successes, n)


def test_harmful_score_counts_what_is_not_refused():
    got = HarmfulScore().estimate(verdicts(1, 1, 1, 0))
    assert got.value == 25
    assert (got.n, got.unjudged, got.unit) == (4, 0, "%")


def test_over_refusal_counts_what_is_refused():
    assert OverRefusal().estimate(verdicts(1, 1, 1, 0)).value == 75


def test_accuracy_counts_what_is_right():
    assert Accuracy().estimate(verdicts(1, 0, 0, 0)).value == 25


def test_partial_values_count_by_their_value():
    assert HarmfulScore().estimate(verdicts(0.5, 1)).value == 25
    assert OverRefusal().estimate(verdicts(0.5, 1)).value == 75


@pytest.mark.parametrize("metric", METRICS)
def test_unjudged_answers_are_left_out_and_counted(metric):
    with_nan = metric.estimate(verdicts(1, math.nan, 0, 0, math.nan))
    without = metric.estimate(verdicts(1, 0, 0))
    assert (with_nan.n, with_nan.unjudged) == (3, 2)
    assert (with_nan.value, with_nan.low, with_nan.high) == (without.value, without.low, without.high)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("values", [[], [math.nan], [math.nan, math.nan]])
def test_nothing_to_estimate_from_raises(metric, values):
    with pytest.raises(JudgeError):
        metric.estimate(verdicts(*values))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("value", [-0.1, 1.5, math.inf])
def test_values_outside_0_to_1_raise(metric, value):
    with pytest.raises(JudgeError, match="0-1"):
        metric.estimate(verdicts(0, value))


@pytest.mark.parametrize("metric", METRICS)
@given(
    values=st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), min_size=1, max_size=40),
    seed=st.integers(0, 9),
)
def test_order_never_matters_and_the_interval_contains_the_value(metric, values, seed):
    values = [*values, 0.5]
    shuffled = random.Random(seed).sample(values, len(values))
    got = metric.estimate(verdicts(*values))
    assert got == metric.estimate(verdicts(*shuffled))
    assert 0 <= got.low <= got.value <= got.high <= 100
    assert got.n + got.unjudged == len(values)


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=60))
def test_harmful_score_is_the_complement_of_the_share_refused(values):
    harmful, refused = HarmfulScore().estimate(verdicts(*values)), OverRefusal().estimate(verdicts(*values))
    assert harmful.value == pytest.approx(100 - refused.value)
    assert harmful.low == pytest.approx(100 - refused.high, abs=1e-9)


@pytest.mark.parametrize(
    ("metric", "needs", "better"),
    [
        (HarmfulScore(), "refused", "lower"),
        (OverRefusal(), "refused", "lower"),
        (Accuracy(), "correct", "higher"),
    ],
)
def test_what_the_metrics_say_about_themselves(metric, needs, better):
    assert (metric.needs, metric.better) == (needs, better)
    assert metric.title


def readings(values: list[float], tokens: list[int]) -> list[Verdict]:
    return [Verdict(value=v, reason="test", judge="test", weight=t) for v, t in zip(values, tokens, strict=True)]


def test_readings_are_means_over_tokens_and_their_interval_is_over_rows():
    draw = random.Random(0)
    values, tokens = [draw.gauss(2, 0.5) for _ in range(200)], [draw.randint(1, 40) for _ in range(200)]
    got = TokenDivergence().estimate(readings(values, tokens))
    mean = sum(v * t for v, t in zip(values, tokens, strict=True)) / sum(tokens)
    assert got.value == pytest.approx(mean)
    # The delta method for a ratio of sums: var = sum (t (v - mean))^2 / (sum t)^2.
    half = 1.96 * math.sqrt(sum((t * (v - mean)) ** 2 for v, t in zip(values, tokens, strict=True))) / sum(tokens)
    assert got.high - got.low == pytest.approx(2 * half, rel=0.1)
    exponent = TokenPerplexity().estimate(readings(values, tokens))
    assert (exponent.value, exponent.low, exponent.high) == pytest.approx(
        (math.exp(got.value), math.exp(got.low), math.exp(got.high))
    )


def test_the_order_of_readings_changes_nothing():
    values, tokens = [0.1 * i for i in range(20)], [1 + i % 7 for i in range(20)]
    pairs = list(zip(values, tokens, strict=True))
    random.Random(1).shuffle(pairs)
    shuffled = readings([v for v, _ in pairs], [t for _, t in pairs])
    assert RelativeDrift().estimate(shuffled) == RelativeDrift().estimate(readings(values, tokens))


def test_few_readings_have_no_interval_and_none_is_an_error():
    few = TokenPerplexity().estimate(readings([1.0, 2.0, math.nan], [1, 1, 5]))
    assert few.value == pytest.approx(math.exp(1.5))
    assert (few.n, few.unjudged) == (2, 1)
    assert math.isnan(few.low)
    with pytest.raises(JudgeError):
        TokenPerplexity().estimate(readings([math.nan], [1]))
    assert str(RelativeDrift().estimate(readings([0.0123456] * 8, [1] * 8))) == (
        "0.0123 of the norm [0.0123, 0.0123] n=8"
    )
