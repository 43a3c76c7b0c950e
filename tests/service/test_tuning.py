# SPDX-License-Identifier: Apache-2.0
"""The process of a job: its lines are whole, its failures have a reason, and it stops when it is asked to."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import time

import pytest

from moored.errors import ConfigError, DataError, StudyError
from moored.service import story
from moored.service.failures import Diverged, Failed, reason
from moored.service.folder import JobFolder
from moored.service.hyperparameters import checked, resolved
from moored.service.job_recipe import recipe_of, text_of
from moored.service.policy import Limits, Policy
from moored.service.problems import ApiProblem
from moored.service.tightening import tightened
from moored.service.tuning import Stop, Teller, main
from moored.study.recipe import Recipe, TrainingSpec
from moored.study.text import read_mapping
from service.job_server import TREE, Bench


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path):
    folder = JobFolder(tmp_path)
    teller = Teller(folder.progress, Stop())
    teller.say(kind="one")
    with folder.progress.open("a") as file:
        file.write('{"kind": "tw')  # killed here
    assert [line["kind"] for _, line in folder.events()] == ["one"]
    Teller(folder.progress, Stop()).say(kind="three")
    found = list(folder.events())
    assert [line["kind"] for _, line in found] == ["one", "three"]
    assert [line["kind"] for _, line in folder.events(found[0][0])] == ["three"]


def _caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code", "param"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full", None),
        (_caused(StudyError("no space"), OSError(errno.EDQUOT, "quota")), "disk_full", None),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out_of_memory", None),
        (_caused(StudyError("a stage failed"), MemoryError()), "out_of_memory", None),
        (Diverged("not finite"), "training_diverged", "hyperparameters"),
        (DataError("2 prompts of task `x` are also in `upload`"), "invalid_training_file", "training_file"),
        (DataError("no data at /srv/secret/rows.jsonl"), "server_misconfigured", None),
        (ConfigError("no model at /srv/secret"), "server_misconfigured", None),
        (ZeroDivisionError("/srv/secret"), "server_error", None),
        (Failed("own", "words", "model"), "own", "model"),
    ],
)
def test_why_a_job_failed(error, code, param):
    found = reason(error)
    assert (found["code"], found["param"]) == (code, param)
    assert "/srv" not in found["message"]
    assert str(error) in found["detail"]


TRAINING = TrainingSpec(epochs=2, batch=8, lr=1e-3)
AUTO = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}


def test_auto_is_the_policys():
    known, training = resolved(AUTO, TRAINING, 100)
    assert known.plain() == {"n_epochs": 2, "batch_size": 8, "learning_rate_multiplier": 1.0}
    assert training == TRAINING.model_dump(mode="json")


@pytest.mark.parametrize(("batch", "micro", "accumulate"), [(4, 4, 1), (8, 8, 1), (12, 6, 2), (32, 8, 4), (13, 1, 13)])
def test_a_larger_batch_takes_no_more_memory(batch, micro, accumulate):
    known, training = resolved({**AUTO, "batch_size": batch}, TRAINING, 100)
    assert (training["batch"], training["accumulate"], known.batch_size) == (micro, accumulate, batch)


def test_epochs_and_rate_are_the_users():
    asked = {"n_epochs": 3, "batch_size": "auto", "learning_rate_multiplier": 2}
    known, training = resolved(asked, TrainingSpec(steps=50, batch=8, lr=1e-3), 100)
    assert (training["steps"], training["epochs"], training["lr"]) == (None, 3.0, 2e-3)
    assert (known.n_epochs, known.learning_rate_multiplier) == (3, 2.0)
    assert resolved(AUTO, TrainingSpec(steps=50, batch=8), 100)[0].n_epochs == 4


@pytest.mark.parametrize("value", [True, 0, 1.5, "many", 257, [1], float("nan")])
def test_a_batch_is_a_whole_number(value):
    with pytest.raises(ApiProblem, match="whole number"):
        checked({"batch_size": value}, Limits(), "hyperparameters", "supervised")


def test_a_policy_only_gets_stricter():
    policy = Policy.model_validate(TREE | {"gate": {"harmful_score": 10, "by": "interval", "approval": True}})
    asked = {"gate": {"harmful_score": 10}, "screen": {"secrets": "block", "most_flagged": 0.1}}
    assert tightened(policy, asked).screen.secrets == "block"
    for looser in ({"by": "estimate"}, {"approval": False}, {"harmful_score": 10.5}, {"harmful_score": "x"}):
        with pytest.raises(ApiProblem):
            tightened(policy, {"gate": looser})
    for malformed in ([], {"gate": 1}, {"limits": {}}, {"screen": {"judge": "keywords"}}):
        with pytest.raises(ApiProblem):
            tightened(policy, malformed)


@pytest.fixture
def bench(tmp_path):
    made = Bench.at(tmp_path / "home")
    yield made
    made.database.close()


def test_a_recipe_is_written_as_it_is_read(bench):
    job_id = bench.job(seed=9)
    folder = bench.folder(job_id)
    tree, _ = recipe_of(bench.read(job_id), Policy.model_validate(bench.tree), folder, rows=16, repaired=True)
    folder.write("recipe.yaml", text_of(tree))
    recipe = Recipe.parse(read_mapping(folder.recipe))
    assert recipe.plain() == Recipe.parse(tree).plain()
    assert (recipe.finetune.seed, recipe.seed, list(recipe.arms)) == (9, 0, ["tuned", "repaired"])
    assert recipe.finetune.training.max_length == 256  # not below the longest row that was let in


def test_a_story_is_told_once(tmp_path):
    line = {
        "kind": "finetune",
        "key": "k",
        "state": "working",
        "done": 6,
        "total": 9,
        "step": 5,
        "loss": 1.25,
        "saved": 5,
    }
    lines, kept = story.told(line)
    again, _ = story.told(line | {"done": 7})
    assert [each.message for each in lines] == ["Step 5/9: training loss=1.25", "Checkpoint created at step 5"]
    assert [each.key for each in again] == [each.key for each in lines]
    assert (kept[0].step, kept[0].metrics) == (5, {"step": 5, "train_loss": 1.25})
    assert story.told({"kind": "study", "state": "finished"}) == ([], [])


@pytest.mark.slow
def test_the_process_stops_with_a_checkpoint_and_goes_on(bench):
    job_id = bench.job(hyperparameters={"n_epochs": 10})
    bench.worker(statuses=("validating_files",)).run(once=True)
    job, folder = bench.read(job_id), bench.folder(job_id)
    assert (job.status, job.worker) == ("queued", None)  # checked; another worker trains
    tree, _ = recipe_of(job, Policy.model_validate(job.policy), folder, rows=16)
    tree["finetune"]["training"]["save_every"] = 0
    folder.write("recipe.yaml", text_of(tree))
    command = [sys.executable, "-m", "moored.service.tuning", str(folder.path)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not any(line.get("kind") == "finetune" and line.get("done", 0) >= 5 for _, line in folder.events()):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    assert len(list(bench.settings.store.glob("work/finetune-*/model/checkpoint-*/trainer_state.json"))) == 1
    assert subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0
    assert folder.finished() is not None
    steps = [
        line["done"] for _, line in folder.events() if line.get("kind") == "finetune" and line["state"] == "working"
    ]
    assert steps == sorted(steps)  # no step was trained again
    assert json.loads(folder.record.read_text())["arms"][-1]["name"] == "tuned"


def test_more_than_one_process_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        SystemExit, match="is for one process, and torchrun has started 2: one job trains on one device"
    ):
        main([str(tmp_path)])
    assert list(tmp_path.iterdir()) == []
