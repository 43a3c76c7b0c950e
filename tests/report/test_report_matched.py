# SPDX-License-Identifier: Apache-2.0
import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moored.errors import DataError
from moored.metrics.interval import wilson
from moored.report import matched as module
from moored.report.matched import at_capability, comparable, matched, sentence
from moored.report.record import Arm, Measured, Share

SAFETY = Measured(name="harm", title="ASR", role="safety", better="lower")
UTILITY = Measured(name="accuracy", title="Accuracy", role="utility", better="higher")
CURVE = [(60.0, 10.0), (90.0, 100.0), (70.0, 40.0)]


def share(value, n=100, unit="%"):
    low, high = wilson(value / 100 * n, n)
    return Share(value=value, low=100 * low, high=100 * high, n=n, unit=unit)


def arm(name, capability, safety, n=100, **more):
    return Arm(name=name, title=name, metrics={"accuracy": share(capability, n), "harm": share(safety, n)}, **more)


def curve(n=100, **more):
    return [arm(f"rate{i}", x, y, n, **more) for i, (x, y) in enumerate(CURVE)]


def against(runs, one, **more):
    return matched(runs, one, safety="harm", capability="accuracy", **more)


@pytest.mark.parametrize(
    ("capability", "score"),
    [(60, 10), (65, 25), (70, 40), (80, 70), (90, 100), (10, 10), (95, 100)],
)
def test_a_curve_is_read_between_its_points_and_ends_at_its_ends(capability, score):
    assert at_capability(CURVE, capability) == pytest.approx(score)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=6), st.floats(0, 100))
def test_the_order_never_matters_and_nothing_is_extrapolated(points, capability):
    read = at_capability(points, capability)
    assert read == at_capability(points[::-1], capability)
    scores = [score for _, score in points]
    assert min(scores) - 1e-6 <= read <= max(scores) + 1e-6


def test_of_runs_with_one_capability_the_safest_counts():
    assert at_capability([(50, 30), (50, 10), (80, 70)], 50) == 10
    assert at_capability([(50, 30), (50, 10), (80, 70)], 40) == 10
    assert at_capability([(50, 30), (50, 10)], 90) == 10


def test_a_curve_needs_a_point():
    with pytest.raises(DataError, match="at least one"):
        at_capability([], 50)
    with pytest.raises(DataError, match="at least one"):
        against([], arm("x", 80, 5))


def test_a_run_beside_a_curve():
    found = against(curve(), arm("lisa", 80, 5))
    assert (found.capability, found.curve.value, found.difference[0]) == (80, pytest.approx(70), pytest.approx(-65))
    assert found.curve.low < 70 < found.curve.high
    value, low, high = found.difference
    assert low < value < high < 0
    assert not found.noise
    assert found.outside == ""
    said = sentence(found, "Lisa", SAFETY, UTILITY)
    assert said.startswith("Lisa: ASR 5.0 %; at its Accuracy of 80.0 % the curve has 70.0 %. -65.0 points [")
    assert said.endswith("better than the curve.")
    assert against(curve(), arm("lisa", 80, 5)) == found


def test_a_run_on_the_curve_is_noise():
    found = against(curve(), arm("half", 80, 68))
    assert found.noise
    assert "cannot be told from noise" in sentence(found, "Half", SAFETY, UTILITY)


def test_the_uncertain_capability_widens_the_interval():
    """At a flat curve only the scores are uncertain, on a steep one also where it is read."""

    def width(runs):
        found = against(runs, arm("x", 75, 50))
        return found.curve.high - found.curve.low

    flat = [arm("a", 60, 50), arm("b", 90, 50)]
    steep = [arm("a", 70, 0), arm("b", 80, 100)]
    assert width(steep) > 2 * width(flat)


def test_more_prompts_narrow_the_interval():
    widths = [
        high - low for _, low, high in (against(curve(n), arm("x", 80, 10, n)).difference for n in (50, 200, 800))
    ]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 3 * widths[2]


def test_one_run_as_a_curve_is_a_plain_difference():
    """Oracle: at a curve of one point the capability says nothing, and Newcombe's interval is close by."""
    from moored.metrics.difference import independent

    found = against([arm("a", 50, 40)], arm("b", 50, 20))
    plain = independent(40, 100, 20, 100)
    assert found.difference == pytest.approx((-20, 100 * plain.low, 100 * plain.high), abs=1)


@pytest.mark.parametrize(("capability", "side", "end"), [(50, "below", 10), (97, "above", 100)])
def test_beyond_the_curve_is_said(capability, side, end):
    found = against(curve(), arm("x", capability, 0))
    assert (found.outside, found.curve.value) == (side, end)
    said = sentence(found, "X", SAFETY, UTILITY)
    assert ("not matched" in said) == (side == "below")
    assert ("capable run" in said) is True
    assert found.record()["outside"] == side


def test_seeds_do_not_count_as_prompts():
    one = against(curve(), arm("x", 80, 30)).difference
    seeds = [{"seed": i, "metrics": {}} for i in range(3)]
    pooled = against(curve(300, per_seed=seeds), arm("x", 80, 30, 300, per_seed=seeds)).difference
    assert pooled == pytest.approx(one)


def test_what_cannot_be_matched_is_refused():
    with pytest.raises(DataError, match="arm 'bare' was not measured on accuracy; it has nothing"):
        against(curve(), Arm(name="bare", title="Bare"))
    odd = arm("odd", 80, 5).model_copy(update={"metrics": {"accuracy": share(80), "harm": share(5, unit="nats")}})
    with pytest.raises(DataError, match="'nats'"):
        against(curve(), odd)


def test_runs_under_other_conditions_are_refused():
    runs = curve(sweep={"ratio": 0.1})
    assert comparable(runs, arm("x", 80, 5, sweep={"ratio": 0.1, "rho": 3.0}))
    assert comparable(runs, arm("x", 80, 5))
    with pytest.raises(DataError, match=r"ratio 0\.2.*ratio 0\.1"):
        against(runs, arm("x", 80, 5, sweep={"ratio": 0.2}))
    swept = [run.model_copy(update={"sweep": {"lr": float(i), "ratio": 0.1}}) for i, run in enumerate(runs)]
    assert comparable(swept, arm("x", 80, 5, sweep={"lr": 9.0, "ratio": 0.1}))


def test_the_example_holds():
    assert doctest.testmod(module).failed == 0
