# SPDX-License-Identifier: Apache-2.0
"""The task that compares with a baseline's answers."""

import json

import pytest

from chat_server import chat_server
from moored.data.tiny import tiny_model, tiny_tokenizer
from moored.errors import ConfigError, DataError
from moored.metrics.win_rate import WinRate
from moored.study.evaluation import outcome_record
from moored.study.methods import build
from moored.study.results import column, scores
from moored.tasks.evaluate import evaluate

NOWHERE = {"pairwise": {"url": "http://127.0.0.1:9/v1", "model": "grader"}}


@pytest.fixture
def baseline(tmp_path):
    path = tmp_path / "baseline.jsonl"
    rows = [{"prompt": f"Question {i}?", "answer": f"An answer of {i} words"} for i in range(9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_rows_have_the_baselines_answers(baseline):
    task = build("tasks", "pairwise", {"data": baseline, "by": NOWHERE, "n": 4})
    assert len(task.rows()) == 4
    assert all(row.answer == f"An answer of {row.question[9]} words" for row in task.rows())
    assert (column(task).role, column(task).better, column(task).judge) == ("utility", "higher", "pairwise 1, grader")
    assert task.metric == WinRate()


def test_what_it_needs(baseline, tmp_path):
    with pytest.raises(ConfigError, match="needs `by`"):
        build("tasks", "pairwise", {"data": baseline})
    with pytest.raises(ConfigError, match="`data` of PairwiseComparison must be a file or hub id with the baseline's"):
        build("tasks", "pairwise", {"by": NOWHERE})
    several = {"ensemble": {"of": [NOWHERE, {"pairwise": {"url": "http://127.0.0.1:9/v1", "model": "other"}}]}}
    for other in ("refusal", several):
        with pytest.raises(ConfigError, match="`by` of PairwiseComparison must be a judge that compares"):
            build("tasks", "pairwise", {"data": baseline, "by": other})
    bare = tmp_path / "bare.jsonl"
    bare.write_text(json.dumps({"prompt": "p"}))
    with pytest.raises(DataError, match="needs an answer in every row"):
        build("tasks", "pairwise", {"data": str(bare), "by": NOWHERE}).rows()


def test_the_baseline_against_itself_is_even_without_a_judge(baseline):
    task = build("tasks", "pairwise", {"data": baseline, "by": NOWHERE, "n": 0})
    rows = task.rows()
    assert task.score(rows, [row.answer for row in rows]).estimate.value == 50
    assert task.score(rows, [""] * 9).estimate.value == 0


def test_a_model_through_a_judge(baseline):
    def ours_wins(body):
        baseline_first = "<answer_a>\nAn answer of" in body["messages"][-1]["content"]
        return f"better: {'B' if baseline_first else 'A'}"

    with chat_server(ours_wins) as (url, requests):
        by = {"pairwise": {"url": url, "model": "grader"}}
        task = build("tasks", "pairwise", {"data": baseline, "by": by, "n": 0, "max_new_tokens": 4})
        (outcome,) = evaluate(tiny_model(), tiny_tokenizer(), [task])
    assert outcome.estimate.value == 100
    assert len(requests) == 18
    assert set(scores(task, outcome_record(outcome)).values()) == {1.0}
