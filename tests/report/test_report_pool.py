# SPDX-License-Identifier: Apache-2.0
import math

import pytest

from moored.errors import DataError
from moored.report.demo import demo_record, share
from moored.report.html import render
from moored.report.pool import pool
from moored.report.record import Record


def seeded(seed, hits=4, **more):
    data = {**demo_record().plain(), "seed": seed, "seeds": [seed], **more}
    lisa = next(arm for arm in data["arms"] if arm["name"] == "lisa")
    lisa["metrics"]["harmful_requests"] = share(hits, 64)
    return data


def test_the_mean_and_the_envelope():
    pooled = pool([seeded(0, 4), seeded(1, 0), seeded(2, 20)])
    got = pooled.arm("lisa").metrics["harmful_requests"]
    parts = [share(hits, 64) for hits in (4, 0, 20)]
    assert got.value == pytest.approx(100 * (4 + 0 + 20) / 3 / 64)
    assert got.low == pytest.approx(min(part["low"] for part in parts))
    assert got.high == pytest.approx(max(part["high"] for part in parts))
    assert got.n == 3 * 64
    assert pooled.seeds == [0, 1, 2]
    assert [one.seed for one in pooled.arm("lisa").per_seed] == [0, 1, 2]
    assert pooled.arm("lisa").fired["Lisa"].count == 360
    assert pooled.arm("lisa").fired["Lisa"].mean == pytest.approx(0.8)


def test_the_order_of_seeds_does_not_matter_to_the_numbers():
    one = pool([seeded(0, 4), seeded(1, 9)]).arm("lisa").metrics
    two = pool([seeded(1, 9), seeded(0, 4)]).arm("lisa").metrics
    assert one == two


def test_one_seed_is_left_alone():
    assert pool([seeded(3)]).plain() == Record.read(seeded(3)).plain()


def test_every_seed_is_in_the_report():
    source = render(pool([seeded(0, 4), seeded(1, 0)]))
    assert "Every seed by itself" in source
    assert "seeds 0, 1" in source


def test_an_unmeasured_seed_makes_the_pool_unmeasured():
    data = seeded(1)
    for arm in data["arms"]:
        arm["metrics"]["utility"].update(value=None, low=None, high=None)
    got = pool([seeded(0), data]).arm("lisa").metrics["utility"]
    assert math.isnan(got.value)
    assert math.isnan(got.low)


def test_different_commits_warn():
    assert "different commits" in pool([seeded(0), seeded(1, commit="abc")]).warnings[-1]


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([], "no record"),
        ([seeded(0), seeded(0)], "seed of its own"),
        ([seeded(0), seeded(1, arms=demo_record().plain()["arms"][:5], expectations=[])], "other tasks or arms"),
        ([seeded(0, seeds=[0, 1]), seeded(2)], "pooled already"),
    ],
)
def test_what_cannot_be_pooled_is_refused(records, said):
    with pytest.raises(DataError, match=said):
        pool(records)


def test_disagreement_of_an_ensemble_is_the_mean_of_the_seeds():
    def split(seed, disagreement):
        data = seeded(seed)
        for arm in data["arms"]:
            arm["metrics"]["utility"]["disagreement"] = disagreement
        return data

    def pooled(*shares):
        return pool([split(seed, share) for seed, share in enumerate(shares)]).arm("lisa").metrics["utility"]

    assert pooled(10.0, 20.0).disagreement == 15.0
    assert pooled(0.0, 0.0).disagreement == 0.0
    assert pooled(None, None).disagreement is None


def test_parts_of_a_number_are_pooled_like_the_number():
    def parted(seed, value):
        data = seeded(seed)
        for arm in data["arms"]:
            own = {"value": value, "low": value - 5, "high": value + 5, "n": 10}
            arm["metrics"]["utility"]["parts"] = {"half": own} | ({"other": own} if seed else {})
        return data

    found = pool([parted(0, 10.0), parted(1, 20.0)]).arm("lisa").metrics["utility"].parts
    assert list(found) == ["half"]
    half = found["half"]
    assert (half.value, half.low, half.high, half.n) == (15.0, 5.0, 25.0, 20)
