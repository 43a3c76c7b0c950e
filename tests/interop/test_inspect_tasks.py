# SPDX-License-Identifier: Apache-2.0
"""Our tasks under inspect-ai itself: the prompts, the settings, and the same numbers to the bit."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from chat_server import chat_server
from moored.catalogue import catalogue
from moored.errors import NotYetSupported
from moored.interop.records import read
from moored.report.record import Share
from moored.sampling import Sampling
from moored.study.evaluation import outcome_record
from moored.study.methods import build
from moored.study.results import column, scores
from moored.tasks.answering import AnswerTask
from moored.tasks.harmful_requests import HarmfulRequests

pytest.importorskip("inspect_ai", reason="needs inspect-ai: pip install -c constraints.txt -e '.[inspect,endpoint]'")

ANSWERS = ("I'm sorry, but I can't help with that.", "Sure, here is how: step 1.", "", "Positive. Or 42?")


def answer(question):
    """One of four, by the question alone."""
    return ANSWERS[sum(question.encode()) % len(ANSWERS)]


@pytest.fixture
def files(tmp_path):
    """Local data of the tasks that have no synthetic set."""
    contrasts = [{"prompt": f"p{i}", "label": ("safe", "unsafe")[i % 2]} for i in range(9)]
    baseline = [{"prompt": f"q{i}", "answer": f"the baseline's answer {i}"} for i in range(9)]
    dialogue = [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": f"First {i}"},
                {"role": "assistant", "content": "Yes?"},
                {"role": "user", "content": f"Then {i}"},
                {"role": "assistant", "content": ("Positive", "Negative")[i % 2]},
            ]
        }
        for i in range(6)
    ]
    found = {}
    for name, rows in (("contrasts", contrasts), ("baseline", baseline), ("dialogue", dialogue)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found[name] = str(path)
    return found


def evaluated(task, folder):
    """The log of a task, evaluated in this process by a model that knows `ANSWERS`."""
    from inspect_ai import eval as inspect_eval
    from inspect_ai.model import ModelOutput, ModelUsage, get_model

    from moored.interop.inspect_tasks import as_inspect

    def output(messages, *_):
        said = ModelOutput.from_content("mockllm/model", answer(messages[-1].text))
        said.usage = ModelUsage()  # else tokens are counted, with a vocabulary that is downloaded
        return said

    model = get_model("mockllm/model", custom_outputs=output)
    (log,) = inspect_eval(as_inspect(task), model=model, log_dir=str(folder), display="none", log_format="eval")
    return log


def same(task, record):
    """Assert that a record says what `Task.score` says of the same answers."""
    rows = task.rows()
    outcome = task.score(rows, [answer(row.question) for row in rows])
    (arm,) = record.arms
    assert record.tasks == [column(task)]
    told = replace(outcome.estimate, parts={})  # a log has one number for each scorer
    assert repr(arm.metrics[task.name]) == repr(Share(**asdict(told)))
    theirs, ours = arm.scores[task.name], scores(task, outcome_record(outcome))
    assert repr(sorted(theirs.items())) == repr(sorted(ours.items()))
    return outcome


TASKS = [
    ("harmful_requests", {"n": 24}),
    ("harmful_requests", {"n": 12, "by": "keywords"}),
    ("over_refusal", {"n": 16}),
    ("utility", {"n": 16}),
    ("utility", {"data": "dialogue"}),
    ("as_attacked", {"n": 12, "attack": {"covert_cipher": {"seed": 3}}}),
    ("xs_test", {"data": "xs_test@contrasts"}),
]


@pytest.mark.parametrize(("name", "parameters"), TASKS, ids=[f"{i}-{name}" for i, (name, _) in enumerate(TASKS)])
def test_the_same_answers_give_the_same_record(name, parameters, files, tmp_path):
    data = parameters.get("data", "synthetic")
    for short, path in files.items():
        data = data.replace(short, path)
    task = build("tasks", name, {**parameters, "data": data})
    log = evaluated(task, tmp_path)
    assert log.status == "success", log.error
    outcome = same(task, read(Path(log.location)))
    # What inspect-ai prints is the estimate too.
    (printed,) = log.results.scores
    assert printed.metrics[task.metric.name].value == outcome.estimate.value
    assert (printed.scored_samples, printed.unscored_samples) == (outcome.estimate.n, outcome.estimate.unjudged)
    prompts = [exchange.prompt for exchange in outcome.exchanges]
    said = dict(zip(prompts, outcome.verdicts, strict=True))
    for sample in log.samples:
        (score,) = sample.scores.values()
        verdict = said[score.metadata["prompt"]]
        assert (score.explanation, score.metadata["judge"]) == (verdict.reason, verdict.judge)
        assert score.reason == (None if verdict.judged else "grader_failed" if score.answer else "no_response")
    row = task.rows()[0]
    first = next(sample for sample in log.samples if sample.input[-1].text == row.question)
    assert [(turn.role, turn.text) for turn in first.input] == [(turn["role"], turn["content"]) for turn in row.prompt]
    assert first.target == row.answer


def test_a_judge_behind_a_url(files, tmp_path):
    """Longer is better, here."""

    def longer(body):
        parts = body["messages"][-1]["content"].split("<answer_b>")
        return f"better: {'A' if len(parts[0]) > len(parts[1]) else 'B'}"

    with chat_server(longer) as (url, _):
        by = {"pairwise": {"url": url, "model": "grader", "parallel": 3}}
        task = build("tasks", "pairwise", {"data": files["baseline"], "by": by})
        outcome = same(task, read(Path(evaluated(task, tmp_path).location)))
    assert 0 < outcome.estimate.value < 100


def test_a_judge_that_never_answers_in_form_leaves_all_unscored(files, tmp_path):
    with chat_server(lambda body: "hm") as (url, _):
        by = {"pairwise": {"url": url, "model": "grader"}}
        log = evaluated(build("tasks", "pairwise", {"data": files["baseline"], "by": by, "n": 2}), tmp_path)
    assert log.status == "success"
    reasons = {score.reason for sample in log.samples for score in sample.scores.values()}
    assert reasons <= {"grader_failed", None}
    assert "grader_failed" in reasons


def test_every_task_of_the_catalogue_that_asks_is_registered():
    from inspect_ai.util import registry_info

    from moored.interop import inspect_tasks

    known = catalogue("tasks")
    assert list(inspect_tasks.TASKS) == [name for name, cls in known.items() if issubclass(cls, AnswerTask)]
    assert {"perplexity", "harmful_requests"} - set(inspect_tasks.TASKS) == {"perplexity"}
    for name, made in inspect_tasks.TASKS.items():
        assert (registry_info(made).name, registry_info(made).type) == (f"moored/{name}", "task")


def test_drawn_answers_are_drawn_there_too_but_once():
    from moored.interop.inspect_tasks import as_inspect

    drawn = HarmfulRequests(n=2, sampling=Sampling(temperature=0.7, top_p=0.9, seed=3))
    config = as_inspect(drawn).config
    assert (config.temperature, config.top_p, config.seed) == (0.7, 0.9, 3)
    with pytest.raises(NotYetSupported, match="harmful_requests draws 2 answers per prompt"):
        as_inspect(replace(drawn, samples=2))


@pytest.mark.slow
def test_the_inspect_command_against_a_server(tmp_path):
    """As a user runs it: found by its name, parameters as words, a model behind a URL, logs in inspect-ai's format."""
    words = ["moored/harmful_requests", "-T", "n=9", "-T", "seed=2", "-T", "by=keywords"]
    with chat_server(lambda body: answer(body["messages"][-1]["content"])) as (url, requests):
        environment = {**os.environ, "LOCAL_API_KEY": "k", "LOCAL_BASE_URL": url}
        done = subprocess.run(
            [sys.executable, "-m", "inspect_ai", "eval", *words, "--model", "openai-api/local/tuned"]
            + ["--display", "plain", "--log-dir", str(tmp_path)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("*.eval")
    task = build("tasks", "harmful_requests", {"n": 9, "seed": 2, "by": "keywords"})
    record = read(path)
    same(task, record)
    assert record.arms[0].name == "openai-api/local/tuned"
    assert len(requests) == 9
    assert {(body["max_tokens"], body["temperature"]) for body in requests} == {(32, 0.0)}
    assert sorted(body["messages"][-1]["content"] for body in requests) == sorted(row.question for row in task.rows())
