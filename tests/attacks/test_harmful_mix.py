# SPDX-License-Identifier: Apache-2.0
import hashlib
import json

import pytest

from moored.attacks.harmful_mix import HarmfulMix
from moored.catalogue import make
from moored.data.schema import Row, normalise, overlap
from moored.data.synthetic import SETS
from moored.data.tiny import tiny_rows
from moored.errors import ConfigError, DataError

BENIGN, HARMFUL = tiny_rows(200, "benign"), tiny_rows(200, "harmful")


@pytest.mark.parametrize("n", [1, 2, 5, 10, 33, 150])
@pytest.mark.parametrize("ratio", [0, 0.05, 0.1, 0.25, 0.5, 0.77, 1])
def test_counts_are_exact_and_prompts_distinct(n, ratio):
    upload = HarmfulMix(n=n, ratio=ratio, seed=3).poison(BENIGN, HARMFUL)
    assert len(upload.rows) == n == len({normalise(row.question) for row in upload.rows})
    assert sum(row.source == "harmful" for row in upload.rows) == round(n * ratio)
    assert set(upload.rows) <= {*BENIGN, *HARMFUL}
    assert upload.manifest["counts"] == {"benign": n - round(n * ratio), "harmful": round(n * ratio)}


@pytest.mark.parametrize(("n", "count"), [(5, 2), (7, 4)])
def test_halves_go_to_the_even_neighbour(n, count):
    assert HarmfulMix(n=n, ratio=0.5).harmful_count == count


def test_the_seed_decides_and_nothing_else():
    upload = HarmfulMix(n=50, ratio=0.2, seed=1).poison(BENIGN, HARMFUL)
    assert HarmfulMix(n=50, ratio=0.2, seed=1).poison(tuple(BENIGN), tuple(HARMFUL)) == upload
    other = HarmfulMix(n=50, ratio=0.2, seed=2).poison(BENIGN, HARMFUL)
    assert set(other.rows) != set(upload.rows)


def test_rows_are_shuffled():
    at = HarmfulMix(n=100, ratio=0.5).poison(BENIGN, HARMFUL).manifest["harmful_at"]
    assert 30 < sum(at) / len(at) < 70
    assert at != list(range(at[0], at[0] + len(at)))


def test_draws_nest_over_the_ratio():
    draws = [
        {row for row in HarmfulMix(n=100, ratio=ratio).poison(BENIGN, HARMFUL).rows if row.source == "harmful"}
        for ratio in (0.05, 0.1, 0.4)
    ]
    assert draws[0] < draws[1] < draws[2]


def test_manifest_rebuilds_the_upload_and_is_plain_json():
    upload = HarmfulMix(n=40, ratio=0.3, seed=5).poison(BENIGN, HARMFUL)
    manifest = json.loads(json.dumps(upload.manifest))
    sides = {name: iter(manifest["indices"][name]) for name in ("benign", "harmful")}
    harmful_at = set(manifest["harmful_at"])
    rebuilt = [
        HARMFUL[next(sides["harmful"])] if at in harmful_at else BENIGN[next(sides["benign"])] for at in range(40)
    ]
    assert tuple(rebuilt) == upload.rows
    assert manifest["attack"] == "harmful_mix"
    assert manifest["parameters"] == {"n": 40, "ratio": 0.3, "seed": 5}
    for rows, digest in ((upload.rows, manifest["sha256"]), (BENIGN, manifest["inputs"]["benign"])):
        text = "".join(json.dumps(row.record(), sort_keys=True) + "\n" for row in rows)
        assert digest == hashlib.sha256(text.encode()).hexdigest()


def test_duplicate_prompts_count_once_and_shared_ones_as_harmful():
    harmful = [Row.of("Bad thing?", "a", source="harmful"), Row.of(" bad  THING", "b", source="harmful")]
    benign = [Row.of("bad thing", "c"), Row.of("Good", "d"), Row.of("good!", "e"), Row.of("Fine", "f")]
    upload = HarmfulMix(n=3, ratio=0.34).poison(benign, harmful)
    assert {row.answer for row in upload.rows} == {"a", "d", "f"}
    with pytest.raises(ConfigError, match="needs 2 harmful rows with distinct prompts; only 1 exist"):
        HarmfulMix(n=4, ratio=0.5).poison(benign, harmful)
    with pytest.raises(ConfigError, match="needs 3 benign rows with distinct prompts; only 2 exist"):
        HarmfulMix(n=4, ratio=0.25).poison(benign, harmful)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan"), float("inf")])
def test_ratio_out_of_range(ratio):
    with pytest.raises(ConfigError, match="`ratio` of HarmfulMix must be between 0 and 1; got"):
        HarmfulMix(ratio=ratio)


def test_no_rows_asked():
    with pytest.raises(ConfigError, match="`n` of HarmfulMix must be an integer >= 1; got 0"):
        HarmfulMix(n=0)


def test_inputs_that_cannot_be_an_upload():
    with pytest.raises(DataError, match="row 1 of `harmful` has source 'benign'"):
        HarmfulMix(n=10).poison(BENIGN, BENIGN)
    with pytest.raises(DataError, match="row 201 of `benign` has no answer"):
        HarmfulMix(n=10).poison([*BENIGN, Row.of("q")], HARMFUL)


def test_found_in_the_catalogue_and_no_test_prompt_gets_in():
    attack = make("attacks", "harmful-mix", n=400, ratio=0.5, seed=7)
    upload = attack.poison(SETS["utility"](1), SETS["harmful"](1))
    for name in ("requests", "lookalikes", "utility-test", "alignment"):
        assert not overlap(upload.rows, SETS[name](0))
