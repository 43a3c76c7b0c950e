# SPDX-License-Identifier: Apache-2.0
"""Logs of inspect-ai as records, from logs written out by hand: no inspect-ai is needed to read JSON."""

import json
import math

import pytest

from moored.data.schema import prompt_id
from moored.errors import DataError
from moored.interop.records import merged, model_name, named, read
from moored.report.compare import compare
from moored.study.results import column
from moored.tasks.harmful_requests import HarmfulRequests


def sample(number, value, *, prompt="", scorer="refusal", epoch=1, explanation="rule", judge="refusal/2", **score):
    asked = prompt or f"Question {number}?"
    said = {"judge": judge, "prompt": asked} if judge else None
    scored = {"value": value, "answer": f"answer {number}", "explanation": explanation, "metadata": said, **score}
    turns = [{"role": "system", "content": "be"}, {"role": "user", "content": asked}]
    return {"id": number, "epoch": epoch, "input": turns, "scores": {scorer: scored}}


def log(*samples, task="moored/harmful_requests", model="hf//home/me/runs/tuned", ours=True, **eval_fields):
    column_of = column(HarmfulRequests()).model_dump(mode="json")
    return {
        "version": 2,
        "status": "success",
        "eval": {
            "task": task,
            "task_version": "3",
            "created": "2026-11-22T10:00:00+00:00",
            "model": model,
            "dataset": {"name": "/home/me/data.jsonl", "sample_ids": sorted({each["id"] for each in samples})},
            "packages": {"inspect_ai": "0.3.285", "moored": "0.1.0"},
            "metadata": {"moored": {"task": column_of, "metric": "harmful_score"}} if ours else None,
            **eval_fields,
        },
        "samples": list(samples),
    }


@pytest.fixture
def file(tmp_path):
    def write(content, name="log.json"):
        path = tmp_path / name
        path.write_text(json.dumps(content))
        return path

    return write


def test_a_task_of_ours(file):
    """2 of 3 judged answers are not refused; Wilson's interval of 2/3 by hand (z = 1.96): 20.8 to 93.9."""
    path = file(log(sample(3, 0.0), sample(1, math.nan, explanation="empty answer"), sample(2, 1.0), sample(4, 0.0)))
    record = read(path)
    (arm,) = record.arms
    assert (arm.name, record.name, record.created) == ("tuned", "inspect-ai", "2026-11-22T10:00:00+00:00")
    assert record.tasks == [column(HarmfulRequests())]
    share = arm.metrics["harmful_requests"]
    assert (share.value, share.low, share.high) == pytest.approx((200 / 3, 20.77, 93.85), abs=0.01)
    assert (share.n, share.unjudged) == (3, 1)
    assert [arm.scores["harmful_requests"][prompt_id(f"Question {i}?")] for i in (2, 3, 4)] == [0, 1, 1]
    assert math.isnan(arm.scores["harmful_requests"][prompt_id("Question 1?")])
    # In the order of the data, not of the log; NaN stays without a verdict.
    assert [(each.prompt, each.refused) for each in arm.examples] == [("Question 1?", None), ("Question 2?", True)]
    assert record.versions == {"inspect-ai": "0.3.285", "moored": "0.1.0"}
    assert "/home" not in record.model_dump_json()


def test_a_record_of_ours_is_compared_prompt_by_prompt(file):
    values = (1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0)
    one = read(file(log(*(sample(i, v) for i, v in enumerate(values))), "one.json"))
    two = read(file(log(*(sample(i, 0.0) for i in range(8)), model="openai/gpt"), "two.json"))
    (found,) = compare(one, one.arms[0], two, two.arms[0])
    assert found.difference.value == pytest.approx(62.5)
    assert (found.better, found.worse, found.shared) == (0, 5, 8)


def test_a_sample_that_broke_is_unjudged(file):
    broken = {"id": 2, "epoch": 1, "input": "Question 2?", "scores": None, "error": {"message": "x"}}
    share = read(file(log(sample(1, 1.0), broken))).arms[0].metrics["harmful_requests"]
    assert (share.n, share.unjudged) == (1, 1)


def test_settings_that_are_not_the_tasks_own_are_said(file):
    given = {"temperature": 0.7, "max_tokens": None, "max_connections": 3}
    record = read(file(log(sample(1, 1.0), model_generate_config=given)))
    assert record.warnings == ["harmful_requests was answered with temperature 0.7, which is not the task's own"]


def test_local_models_have_the_names_of_their_folders(file):
    path = file(log(sample(1, 1.0), model="hf/local", model_args={"model_path": "/home/me/runs/tuned"}))
    assert read(path).model == "tuned"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({**log(sample(1, 1.0)), "status": "error"}, "ended as 'error'; finish it with `inspect eval-retry`"),
        ({**log(sample(1, 1.0)), "samples": None}, "holds no samples"),
        (log(sample(1, 1.0), sample(1, 0.0, epoch=2)), "--epochs 1"),
        (log(sample(1, math.nan)), "nothing to estimate from"),
        (log(sample(1, {"a": 1}, judge=""), ours=False), "no scorer of moored/harmful_requests gave single numbers"),
        ({"results": {}}, "neither a log of inspect-ai"),
        ([], "must hold an object"),
    ],
)
def test_what_cannot_be_read(file, content, sentence):
    with pytest.raises(DataError, match=sentence):
        read(file(content))


def test_broken_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.json cannot be read"):
        read(tmp_path / "gone.json")
    (tmp_path / "half.json").write_text('{"eval":')
    with pytest.raises(DataError, match=r"half\.json, line 1: not JSON"):
        read(tmp_path / "half.json")


def test_anothers_task_with_letters_and_epochs(file):
    rows = [
        *(sample(1, mark, judge="", scorer="match", epoch=epoch) for epoch, mark in ((1, "C"), (2, "I"))),
        sample(2, "C", judge="", scorer="match"),
        sample(3, "N", judge="", scorer="match"),
        sample(4, math.nan, judge="", scorer="match"),
    ]
    record = read(file(log(*rows, task="evals/riddles", ours=False)), role="safety", better="lower")
    (task,) = record.tasks
    assert (task.name, task.judge, task.version, task.data) == ("evals/riddles", "inspect-ai, match", "3", "data.jsonl")
    assert (task.role, task.better) == ("safety", "lower")
    share = record.arms[0].metrics["evals/riddles"]
    assert (share.value, share.n, share.unjudged, share.unit) == (50, 3, 1, "%")
    judged = sorted(score for score in record.arms[0].scores["evals/riddles"].values() if not math.isnan(score))
    assert judged == [0, 0.5, 1]


def test_anothers_task_with_two_scorers_one_of_them_no_share(file):
    rows = [sample(i, i % 2, judge="", scorer="right") for i in range(10)]
    for i, row in enumerate(rows):
        row["scores"]["length"] = {"value": i + 1}
        row["scores"]["parts"] = {"value": {"a": 1}}
    record = read(file(log(*rows, task="riddles", ours=False)))
    assert [task.name for task in record.tasks] == ["riddles/right", "riddles/length"]
    right, length = record.arms[0].metrics["riddles/right"], record.arms[0].metrics["riddles/length"]
    assert (right.value, right.unit) == (50, "%")
    assert (length.value, length.unit) == (5.5, "of its own")
    assert 3 < length.low < 5.5 < length.high < 8


def test_two_samples_that_ask_the_same_are_two(file):
    rows = [sample(i, i % 2, prompt="the same?", judge="", scorer="s") for i in range(4)]
    assert len(read(file(log(*rows, ours=False))).arms[0].scores["moored/harmful_requests"]) == 4


def test_several_logs_are_one_record(file):
    one = read(file(log(sample(1, 1.0))))
    other = read(file(log(sample(1, 0.0), model="openai/gpt")))
    riddles = read(file(log(sample(1, "C", judge="", scorer="s"), task="riddles", ours=False)))
    record = merged([one, other, riddles])
    assert [(arm.name, sorted(arm.metrics)) for arm in record.arms] == [
        ("tuned", ["harmful_requests", "riddles"]),
        ("openai/gpt", ["harmful_requests"]),
    ]
    with pytest.raises(DataError, match="tuned was measured twice on harmful_requests"):
        merged([one, one])
    assert [arm.name for arm in merged([one, named(one, "again")]).arms] == ["tuned", "again"]
    other_judge = other.model_copy(update={"tasks": [other.tasks[0].model_copy(update={"judge": "keywords 1"})]})
    with pytest.raises(DataError, match="another judge, version or data"):
        merged([one, other_judge])


@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("hf//home/me/runs/tuned/", "tuned"),
        ("/srv/models/tuned", "tuned"),
        ("./runs/tuned", "tuned"),
        ("hf/./tuned", "tuned"),
        ("~/tuned", "tuned"),
        ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M"),
        ("openai-api/local/tiny", "openai-api/local/tiny"),
        ("gpt", "gpt"),
    ],
)
def test_names_hold_no_machine_path(where, name):
    assert model_name(where) == name
