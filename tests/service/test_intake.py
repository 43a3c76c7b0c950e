# SPDX-License-Identifier: Apache-2.0
"""What becomes of rows before anything trains: told by line, dropped, and too few of them."""

from __future__ import annotations

import io
import json

import pytest

from moored.data.tiny import tiny_rows
from moored.service.pipeline import Pipeline
from moored.service.wiring import seams_of
from moored.service.worker import EARLY, Worker
from service.job_server import ThreadLauncher

POLICY = """
[models.tiny]
source = "tiny"
[limits]
row_tokens = 64
[screen]
too_long = "TOO_LONG"
secrets = "drop"
[defend]
training = { epochs = 1, batch = 4 }
[defend.dpo]
training = { epochs = 1, batch = 4 }
[audit]
tasks = { harmful_requests = { n = 2 }, over_refusal = { n = 2 }, utility = { n = 2 } }
"""


@pytest.fixture(params=["block"])
def settings(settings, request):
    settings.home.mkdir(parents=True)
    (settings.home / "policy.toml").write_text(POLICY.replace("TOO_LONG", request.param))
    return settings


def chats(rows=12, **changed):
    lines = [[dict(turn) for turn in row.messages] for row in tiny_rows(rows)]
    for number, answer in changed.items():
        lines[int(number[1:]) - 1][-1]["content"] = answer
    return "\n".join(json.dumps({"messages": turns}) for turns in lines).encode()


def pairs(rows=12, **changed):
    lines = [json.loads(line)["messages"] for line in chats(rows).splitlines()]
    made = [
        {
            "input": {"messages": turns[:-1]},
            "preferred_output": [turns[-1]],
            "non_preferred_output": [{"role": "assistant", "content": changed.get(f"n{number}", "No.")}],
        }
        for number, turns in enumerate(lines, start=1)
    ]
    return "\n".join(map(json.dumps, made)).encode()


def looked_at(server, data, **asked):
    """A job on this file after everything that comes before it waits for a slot."""
    parts = server.parts
    with server.client() as client:
        file = client.files.create(file=("rows.jsonl", io.BytesIO(data)), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(model="tiny", training_file=file.id, seed=3, **asked)
        seams = seams_of(parts.settings, parts.database)
        launcher = ThreadLauncher(settings=parts.settings)
        pipeline = Pipeline(settings=parts.settings, launcher=launcher, seams=seams, statuses=EARLY)
        Worker(database=parts.database, pipeline=pipeline, idle=0.02).run(once=True)
        return client.fine_tuning.jobs.retrieve(job.id)


LONG = "far " * 80


def test_rows_that_are_too_long_are_told_by_line_before_anything_trains(server):
    job = looked_at(server, chats(n3=LONG, n7=LONG))
    assert (job.status, job.error.code, job.error.param) == ("failed", "too_many_tokens", "training_file")
    assert "Line 3 has " in job.error.message
    assert "tokens; the most is 64" in job.error.message
    assert "(1 more complaints)" in job.error.message
    assert job.finished_at is not None
    with server.client() as client:
        said = [event.message for event in client.fine_tuning.jobs.list_events(job.id).data if event.level == "error"]
    assert [
        any(message.startswith(f"Invalid file format. Line {line} has") for message in said) for line in (3, 7)
    ] == [True, True]


@pytest.mark.parametrize("settings", ["drop"], indirect=True)
def test_rows_that_are_too_long_are_dropped_and_said(server):
    job = looked_at(server, chats(n3=LONG, n7=LONG))
    assert job.status == "queued", job.error
    found = job.x_safety["screening"]
    assert (found["dropped"], found["kept"], found["flagged"]) == ([3, 7], 10, [])
    assert found["counts"]["too_long"] == 2
    assert [each["action"] for each in found["findings"] if each["category"] == "too_long"] == ["drop", "drop"]
    kept = (server.parts.settings.job(job.id) / "rows.jsonl").read_text().splitlines()
    assert len(kept) == 10
    assert LONG.strip() not in "".join(kept)


@pytest.mark.parametrize("settings", ["drop"], indirect=True)
def test_fewer_than_ten_rows_are_too_few(server):
    job = looked_at(server, chats(n1=LONG, n3=LONG, n5="password: hunter2-9xq81!"))
    assert (job.status, job.error.code, job.error.param) == ("failed", "invalid_n_examples", "training_file")
    assert job.error.message == (
        "Training file has 9 example(s) left after the screen dropped 3 of 12, but must have at least 10 examples."
    )


def test_the_worse_answer_of_a_preference_is_counted_too(server):
    job = looked_at(server, pairs(n4=LONG), method={"type": "dpo"})
    assert job.error.code == "too_many_tokens"
    assert "Line 4 has " in job.error.message
