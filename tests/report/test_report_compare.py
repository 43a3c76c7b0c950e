# SPDX-License-Identifier: Apache-2.0
import math

import pytest

from moored.errors import ConfigError, DataError
from moored.metrics.interval import wilson
from moored.report.compare import compare, pairs
from moored.report.demo import demo_record
from moored.report.pool import pool
from moored.report.record import Record


def arm(name, values, task="harm", unit="%"):
    """An arm with one score per prompt."""
    judged = [value for value in values.values() if not math.isnan(value)]
    low, high = wilson(sum(judged), len(judged))
    share = {"value": 100 * sum(judged) / len(judged), "low": 100 * low, "high": 100 * high, "n": len(judged)}
    return {"name": name, "title": name, "metrics": {task: {**share, "unit": unit}}, "scores": {task: values}}


def record(*arms, **column):
    task = {"name": "harm", "title": "ASR", "role": "safety", "better": "lower", "judge": "refusal 6", "version": "1"}
    return Record.read({"name": "x", "tasks": [{**task, **column}], "arms": list(arms)})


def scores(start, hits, n=40):
    """`n` prompts from number `start`, the first `hits` of which score 1."""
    return {f"p{start + i}": float(i < hits) for i in range(n)}


def compared(first, second):
    (found,) = compare(first, first.arms[0], second, second.arms[0])
    return found


def test_the_same_prompts_are_paired_by_name_and_not_by_order():
    backwards = dict(reversed(scores(0, 10).items()))
    found = compared(record(arm("a", scores(0, 30))), record(arm("b", backwards)))
    assert found.difference.value == pytest.approx(-50)
    assert (found.better, found.worse) == (20, 0)
    assert found.difference.method.startswith("paired, Newcombe")
    assert found.basis.endswith("the same prompts")
    assert found.sentence.startswith("ASR: 50.0 points lower, better [-")
    assert found.sentence.endswith("better on 20 prompts, worse on 0.")


def test_a_small_difference_is_called_noise():
    found = compared(record(arm("a", scores(0, 10))), record(arm("b", scores(0, 12))))
    assert found.difference.noise
    assert "+5.0 points, cannot be told from noise" in found.sentence
    assert "better on 0 prompts, worse on 2" in found.sentence


def test_higher_is_better_where_the_task_says_so():
    first, second = (record(arm(name, scores(0, hits)), better="higher") for name, hits in (("a", 10), ("b", 35)))
    found = compared(first, second)
    assert "25 prompts, worse on 0" in found.sentence
    assert "higher, better" in found.sentence


def test_only_shared_prompts_are_compared_and_it_says_how_many():
    found = compared(record(arm("a", scores(0, 40))), record(arm("b", scores(10, 0))))
    assert (found.shared, found.asked, found.difference.n) == (30, (40, 40), 30)
    assert found.basis.endswith("the 30 prompts that both were asked, of 40 and 40")


def test_other_prompts_are_refused():
    with pytest.raises(DataError, match="the prompts differ: none of 40 and 40 is shared"):
        compared(record(arm("a", scores(0, 10))), record(arm("b", scores(40, 10))))


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ({"judge": "keywords 1"}, "judged by 'refusal 6' and by 'keywords 1'"),
        ({"version": "2"}, "versions '1' and '2'"),
    ],
)
def test_other_judges_and_versions_are_refused(column, said):
    with pytest.raises(DataError, match=said):
        compared(record(arm("a", scores(0, 10))), record(arm("b", scores(0, 10)), **column))


def test_unjudged_answers_are_left_out():
    some = {**scores(0, 30), "p0": math.nan}
    found = compared(record(arm("a", some)), record(arm("b", scores(0, 30))))
    assert (found.difference.n, found.difference.value, found.shared) == (39, 0, 40)
    with pytest.raises(DataError, match="was judged in both"):
        compared(
            record(arm("a", {"p0": 1.0, "p1": math.nan})),
            record(arm("b", {"p0": math.nan, "p1": 1.0})),
        )


def test_records_without_scores_are_compared_as_independent_ones():
    plain = demo_record()
    found = compare(plain, plain.arm("undefended"), plain, plain.arm("lisa"))
    assert [each.task.name for each in found] == [task.name for task in plain.tasks]
    assert found[0].difference.method.startswith("unpaired")
    assert found[0].better is None
    assert "does not hold the scores" in found[0].basis
    assert not found[0].difference.noise
    assert found[2].difference.noise


def test_without_scores_other_data_are_refused():
    def bare(name, **column):
        return record({**arm(name, scores(0, 10)), "scores": {}}, **column)

    assert compared(bare("a", data="x.jsonl"), bare("b", data="x.jsonl")).difference.noise
    with pytest.raises(DataError, match=r"asked of 'x\.jsonl' and of 'y\.jsonl'"):
        compared(bare("a", data="x.jsonl"), bare("b", data="y.jsonl"))


def test_values_that_are_no_shares_keep_their_unit():
    def losses(name, by):
        values = {f"p{i}": by + i % 5 / 10 for i in range(40)}
        mean = sum(values.values()) / 40
        metrics = {"harm": {"value": mean, "low": mean, "high": mean, "n": 40, "unit": "nats"}}
        return record({"name": name, "title": name, "metrics": metrics, "scores": {"harm": values}})

    found = compared(losses("a", 2.0), losses("b", 1.5))
    assert (found.difference.value, found.unit) == (pytest.approx(-0.5), "nats")
    assert "0.5 nats lower, better" in found.sentence
    other = losses("b", 1.5).model_copy(update={"arms": [record(arm("b", scores(0, 10))).arms[0]]})
    with pytest.raises(DataError, match="in 'nats' and in '%'"):
        compared(losses("a", 2.0), other)


def test_no_common_task_is_said():
    with pytest.raises(DataError, match="no task in common"):
        compared(record(arm("a", scores(0, 10))), record({"name": "b", "title": "b"}))


def test_a_comparison_is_plain_json():
    import json

    found = compared(record(arm("a", scores(0, 30))), record(arm("b", scores(0, 10))))
    plain = json.loads(json.dumps(found.record(), allow_nan=False))
    assert (plain["task"], plain["unit"], plain["difference"]["n"]) == ("harm", "%", 40)
    assert plain["sentence"] == found.sentence


def named(first, arm_name, second, other):
    return [(a.name, b.name) for a, b in pairs(first, arm_name, second, other)]


def test_which_arms():
    both, other = record(arm("a", scores(0, 1)), arm("b", scores(0, 2))), record(arm("b", scores(0, 3)))
    lone = record(arm("c", scores(0, 1)))
    assert named(both, "a", both, "b") == [("a", "b")]
    assert named(both, "a", other, "") == [("a", "b")]
    assert named(both, "", other, "b") == [("b", "b")]
    assert named(both, "", both.model_copy(), "") == [("a", "a"), ("b", "b")]
    assert named(both, "b", both.model_copy(), "") == [("b", "b")]
    assert named(other, "", lone, "") == [("b", "c")]
    for words in (("", both, ""), ("a", both, "")):
        with pytest.raises(DataError, match="one record: name both"):
            named(both, *words)
    with pytest.raises(ConfigError, match="unknown arm 'z'"):
        named(both, "z", other, "b")
    with pytest.raises(DataError, match="which arms"):
        named(both, "", lone, "")


def test_pooled_seeds_are_paired_by_their_means():
    one, two = (
        record(arm("a", scores(0, hits))).model_copy(update={"seed": i, "seeds": [i]}) for i, hits in ((0, 20), (1, 30))
    )
    pooled = pool([one, two])
    assert pooled.arms[0].scores["harm"]["p25"] == 0.5
    found = compared(record(arm("b", scores(0, 0))), pooled)
    assert (found.difference.value, found.difference.n) == (pytest.approx(62.5), 40)
    assert "bootstrap" in found.difference.method


def reading(name, values, unit):
    mean = sum(values.values()) / len(values)
    share = {"value": mean, "low": mean, "high": mean, "n": len(values), "unit": unit}
    return {"name": name, "title": name, "metrics": {"harm": share}, "scores": {"harm": values}}


def test_perplexities_compare_by_their_ratio():
    """Scores are losses: ln 8 against ln 4 on every prompt is a perplexity twice as large."""
    first, second = (
        record(reading(name, {f"p{i}": math.log(p) for i in range(10)}, "per token"), scale="log", title="perplexity")
        for name, p in (("a", 4), ("b", 8))
    )
    found = compared(first, second)
    assert found.sentence.startswith("perplexity: × 2 higher, worse [2, 2]; better on 0 prompts, worse on 10")
    assert found.gap == "× 2 [2, 2]"
    assert found.difference.value == pytest.approx(math.log(2))


def test_readings_that_are_all_zero_are_no_shares():
    """Two models that have not drifted do not differ, and no interval of yes-or-no verdicts is put around that."""
    same = [record(reading(name, {f"p{i}": 0.0 for i in range(10)}, "nat"), title="KL") for name in "ab"]
    found = compared(*same)
    assert (found.difference.low, found.difference.value, found.difference.high) == (0, 0, 0)
    assert "bootstrap" in found.basis
    assert found.gap == "+0 [0, 0]"
