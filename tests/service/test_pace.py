# SPDX-License-Identifier: Apache-2.0
"""When a job will be finished: not known before it can be told, then by its own pace."""

import pytest

from moored.service import jobs
from moored.service.clock import now
from moored.service.database import Job
from moored.service.pace import Pace


def line(at, kind, state, *, row="Tuned", words="judge a", seconds=0.0, done=0, total=100):
    return {
        "at": at,
        "kind": kind,
        "state": state,
        "row": row,
        "words": words,
        "seconds": seconds,
        "done": done,
        "total": total,
    }


START = [
    line(0, "evaluate", "finished", row="Aligned start", words="judge a", seconds=30.0),
    line(0, "evaluate", "reused", row="Aligned start", words="judge b", seconds=12.0),
]
TRAINING = [
    line(100, "finetune", "started"),
    line(104, "finetune", "working", done=1),
    line(114, "finetune", "working", done=6),
]


def finish(*lines):
    pace = Pace()
    for each in lines:
        pace.see(each)
    return pace.finish()


@pytest.mark.parametrize("lines", [[], START, [*START, *TRAINING[:1]], [*START, *TRAINING[:2]], TRAINING[:1]])
def test_nothing_is_told_before_there_is_a_pace(lines):
    assert finish(*lines) is None


def test_steps_that_are_left_and_the_audit_after_them():
    assert finish(*START, *TRAINING) == 114 + 94 * 2 + 42


def test_a_training_that_goes_on_does_not_count_the_pause():
    resumed = [line(1000, "finetune", "started"), line(1003, "finetune", "working", done=7)]
    assert finish(*START, *TRAINING, *resumed) is None
    assert finish(*START, *TRAINING, *resumed, line(1006, "finetune", "working", done=10)) == 1006 + 90 + 42


def test_the_audit_counts_down():
    trained = [*START, *TRAINING, line(400, "finetune", "finished", done=100)]
    assert finish(*trained) == 442
    begun = [*trained, line(401, "evaluate", "started"), line(411, "evaluate", "working")]
    assert finish(*begun) == 411 + 42 - 10
    # A task that takes longer than on the start is over any moment now.
    assert finish(*begun, line(500, "evaluate", "working")) == 500 + 12
    assert finish(*begun, line(520, "evaluate", "finished", seconds=119.0)) == 520 + 12


def test_a_repair_is_not_foreseen_and_its_audit_is():
    before = [*START, line(0, "finetune", "reused"), line(5, "repair", "started", row="Repaired")]
    assert finish(*before) is None
    assert finish(*before, line(9, "repair", "finished", row="Repaired")) == 9 + 42


@pytest.mark.parametrize("status", ["queued", "paused", "succeeded", "failed"])
def test_only_a_job_that_runs_has_an_end_to_wait_for(status):
    assert jobs._estimated(Job(status=status, estimated_finish=now() + 60)) is None


def test_it_is_never_in_the_past():
    assert jobs._estimated(Job(status="running", estimated_finish=None)) is None
    asked = now()
    assert jobs._estimated(Job(status="running", estimated_finish=5)) > asked
    later = now() + 60
    assert jobs._estimated(Job(status="running", estimated_finish=later)) == later
