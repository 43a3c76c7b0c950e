# SPDX-License-Identifier: Apache-2.0
"""A whole job, from the upload to the model, and every way in which one can fail."""

from __future__ import annotations

import threading
import time
from copy import deepcopy

import pytest

from moored.service.claims import claim, place, state_of
from moored.service.database import Checkpoint, Job
from moored.service.launchers.base import STOPPED, Away, Ended, NoSlot
from moored.service.life import after
from moored.study.recipe import Recipe
from moored.study.store import Store
from moored.study.study import Study
from service.job_server import TREE, Bench, progress_of, weights_hash


@pytest.fixture
def bench(tmp_path):
    made = Bench.at(tmp_path / "home")
    yield made
    made.database.close()


def test_a_job_from_the_upload_to_the_model(bench):
    job_id = bench.job()
    bench.worker().run(once=True)
    job = bench.read(job_id)
    assert (job.status, job.phase, job.error) == ("succeeded", "over", None), bench.said(job_id)
    assert job.fine_tuned_model.startswith("ft:tiny:one::")
    assert job.hyperparameters == {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 1.0}
    assert bench.models() == {job_id: "passed"}
    said = bench.said(job_id)
    # 8 steps of the user's rows, and 4 that Lisa adds.
    assert [line.partition(":")[0] for line in said if line.startswith("Step")] == ["Step 5/12", "Step 10/12"]
    order = [
        "Validating",
        "Files validated, moving",
        "Making the aligned",
        "Fine-tuning job started",
        "Checkpoint created at step 12",
        "Auditing the tuned",
        "Audit of the tuned",
        "tuned against aligned",
        "New fine-tuned model",
        "The job has successfully",
    ]
    places = [next(i for i, line in enumerate(said) if line.startswith(words)) for words in order]
    assert places == sorted(places)
    assert len(said) == len(set(said))  # nothing is told twice
    assert bench.checkpoints(job_id) == [2, 4, 6, 8, 10, 12]
    assert job.trained_tokens > 0
    lines = bench.blob(job.result_files[0]).decode().splitlines()
    assert lines[0] == "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
    numbers = [line.split(",") for line in lines[1:]]
    assert [line[0] for line in numbers] == ["5", "10", "12"]
    assert all(float(line[1]) > 0 and 0 <= float(line[2]) <= 1 for line in numbers[:-1])


def test_its_recipe_shows_the_job_again(bench):
    job_id = bench.job(seed=11)
    bench.worker().run(once=True)
    store = Store(bench.settings.store)
    record = Study(Recipe.load(bench.folder(job_id).recipe)).run(store)
    store.close()
    assert all(stage.cached for stage in record.stages)
    assert record.arms[-1].metrics == bench.folder(job_id).finished().arms[-1].metrics
    assert [line["state"] for line in progress_of(bench.folder(job_id)) if line["kind"] == "upload"]


def test_jobs_share_the_aligned_start_whatever_their_seed(bench):
    jobs = [bench.job(seed=seed) for seed in (1, 2)]
    bench.worker().run(once=True)
    assert [bench.read(job_id).status for job_id in jobs] == ["succeeded", "succeeded"]
    states = [
        {
            line["kind"]: line["state"]
            for line in progress_of(bench.folder(job_id))
            if line["state"] in ("finished", "reused")
        }
        for job_id in jobs
    ]
    assert sorted(each["align"] for each in states) == ["finished", "reused"]
    assert [each["finetune"] for each in states] == ["finished", "finished"]
    folders = [bench.settings.model(job_id) for job_id in jobs]
    assert weights_hash(folders[0]) != weights_hash(folders[1])


def test_a_model_over_budget_is_repaired_and_measured_again(bench):
    bench.stand.passes = ("repaired",)
    job_id = bench.job()
    bench.worker().run(once=True)
    job = bench.read(job_id)
    assert job.status == "succeeded", (job.error, bench.said(job_id))
    kinds = [(line["kind"], line["state"]) for line in progress_of(bench.folder(job_id))]
    assert kinds.count(("finetune", "finished")) == 1  # nothing is trained twice
    assert ("finetune", "reused") in kinds
    assert kinds.count(("repair", "finished")) == 1
    assert set(job.safety["decision"]) == {"tuned", "repaired"}
    assert set(job.safety["audit"]) == {"aligned", "tuned", "repaired"}


def test_what_the_gate_refuses_is_not_served(bench):
    bench.stand.passes = ()
    job_id = bench.job()
    bench.worker().run(once=True)
    job = bench.read(job_id)
    assert (job.status, job.error["code"], job.fine_tuned_model) == ("failed", "safety_gate", None)
    assert job.error["message"] == "repaired against aligned: refused"
    assert bench.models() == {job_id: "refused"}
    assert bench.stand.logged == ["job.decided"]
    assert len(job.result_files) == 1


def test_a_person_is_asked(bench):
    bench.tree = deepcopy(TREE) | {"gate": {"by": "estimate", "approval": True}}
    job_id = bench.job()
    bench.worker().run(once=True)
    job = bench.read(job_id)
    assert (job.status, job.phase, job.worker, job.fine_tuned_model) == ("running", "approving", None, None)
    assert claim(bench.database, 5, ("running",)) is None  # nothing for a worker to do


def test_a_validation_file_gives_the_last_loss(bench):
    rows = b'{"messages":[{"role":"user","content":"a lamp?"},{"role":"assistant","content":"at home"}]}\n'
    job_id = bench.job(validation_file=bench.upload(data=rows))
    bench.worker().run(once=True)
    job = bench.read(job_id)
    assert job.status == "succeeded", job.error
    last = bench.blob(job.result_files[0]).decode().splitlines()[-1].split(",")
    assert float(last[3]) > 0
    assert 0 <= float(last[4]) <= 1
    with bench.database.reading() as session:
        kept = session.query(Checkpoint).filter_by(job_id=job_id, step=12).one().metrics
    assert f"{kept['full_valid_loss']:.5f}" == last[3]
    assert f"{kept['full_valid_mean_token_accuracy']:.5f}" == last[4]
    assert 0 <= kept["train_mean_token_accuracy"] <= 1


def complaint(message, code):
    from types import SimpleNamespace

    return SimpleNamespace(line=3, message=message, code=code)


def test_a_file_that_is_wrong_fails_with_its_words(bench):
    bench.stand.complaints = [complaint("Line 3 is no JSON.", "invalid_file_format"), complaint("x", "y")]
    job_id = bench.job()
    bench.worker().run(once=True)
    job = bench.read(job_id)
    assert job.error == {
        "code": "invalid_file_format",
        "message": "The job failed due to an invalid training file. Line 3 is no JSON. (1 more complaints)",
        "param": "training_file",
    }


def test_a_file_that_the_screen_blocks_is_not_trained_on(bench):
    bench.stand.block = "Too many rows were flagged: 4, 13."
    job_id = bench.job()
    bench.worker().run(once=True)
    job = bench.read(job_id)
    assert (job.status, job.error["message"]) == ("failed", bench.stand.block)
    assert bench.stand.logged == ["job.blocked"]
    assert not bench.folder(job_id).rows.exists()
    assert bench.launcher.started == []


def test_a_failure_is_the_jobs_and_the_worker_goes_on(bench):
    gone, fine = bench.job(training_file="file-gone"), bench.job()
    bench.worker().run(once=True)
    assert bench.read(gone).error["code"] == "file_not_found"
    assert bench.read(fine).status == "succeeded"


def test_a_missing_model_is_the_operators_fault(bench):
    bench.tree = deepcopy(TREE)
    bench.tree["models"]["tiny"]["source"] = "/no/such/model"
    job_id = bench.job()
    bench.worker().run(once=True)
    error = bench.read(job_id).error
    assert error["code"] == "server_misconfigured"
    assert "/no/such" not in error["message"]


def test_a_training_that_diverges_fails(bench):
    bench.tree = deepcopy(TREE)
    bench.tree["defend"]["training"] |= {"lr": 1e30, "epochs": 4}
    job_id = bench.job()
    bench.worker().run(once=True)
    assert bench.read(job_id).error["code"] == "training_diverged"
    assert bench.models() == {}


@pytest.mark.parametrize(
    ("error", "code"), [(MemoryError(), "out_of_memory"), (OSError(28, "No space left on device"), "disk_full")]
)
def test_a_machine_that_cannot_is_the_reason(bench, monkeypatch, error, code):
    def fine_tune(*args, **kwargs):
        raise error

    monkeypatch.setattr("moored.hf.train.fine_tune", fine_tune)
    first = bench.job()
    bench.worker().run(once=True)
    assert bench.read(first).error["code"] == code


def wish(bench, job_id, happening):
    """What the route does."""
    with bench.database.writing() as session:
        job = session.get(Job, job_id, with_for_update=True)
        place(session, job, after(state_of(job), happening))


def until(check, seconds=60):
    begin = time.monotonic()
    while not check():
        assert time.monotonic() - begin < seconds
        time.sleep(0.01)


def training(bench, job_id):
    folder = bench.folder(job_id)
    return any(line.get("kind") == "finetune" and line.get("done", 0) >= 2 for _, line in folder.events())


LONG = {"n_epochs": 10}


def test_a_pause_keeps_its_place_and_ends_in_the_same_weights(bench, tmp_path):
    straight = Bench.at(tmp_path / "straight")
    straight_id = straight.job(hyperparameters=LONG)
    straight.worker().run(once=True)

    job_id = bench.job(hyperparameters=LONG)
    thread = threading.Thread(target=lambda: bench.worker().run(once=True))
    thread.start()
    until(lambda: training(bench, job_id))
    wish(bench, job_id, "pause")
    thread.join()
    job = bench.read(job_id)
    assert (job.status, job.phase, job.worker) == ("paused", "tuning", None)
    assert list(bench.settings.store.glob("work/finetune-*/model/checkpoint-*"))
    assert claim(bench.database, 5, ("queued", "running")) is None  # a paused job is not due
    wish(bench, job_id, "resume")
    bench.worker().run(once=True)
    assert bench.read(job_id).status == "succeeded"
    assert weights_hash(bench.settings.model(job_id)) == weights_hash(straight.settings.model(straight_id))
    straight.database.close()


def test_a_cancelled_job_ends_while_it_trains(bench):
    job_id = bench.job(hyperparameters=LONG)
    thread = threading.Thread(target=lambda: bench.worker().run(once=True))
    thread.start()
    until(lambda: training(bench, job_id))
    wish(bench, job_id, "cancel")
    thread.join()
    job = bench.read(job_id)
    assert (job.status, job.phase, job.error) == ("cancelled", "over", None)
    assert bench.launcher.find(bench.folder(job_id).path) is None
    assert bench.models() == {}
    assert bench.said(job_id)[-1] == "The job was cancelled"


def test_a_cancel_that_comes_while_the_gate_decides_serves_nothing(bench):
    decide = bench.stand.decide

    def late(record, policy, **which):
        wish(bench, job_id, "cancel")
        return decide(record, policy, **which)

    bench.stand.decide = late
    job_id = bench.job()
    bench.worker().run(once=True)
    assert bench.read(job_id).status == "cancelled"
    assert bench.models() in ({}, {job_id: "deleted"})


def polling(bench, answers):
    """The first questions after what runs are answered by these: an error to raise, or how it ended."""
    ask, left = bench.launcher.poll, list(answers)

    def poll(handle):
        if not left:
            return ask(handle)
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        bench.launcher.running[handle["folder"]].thread.join()
        return answer

    bench.launcher.poll = poll


def test_a_cluster_that_does_not_answer_loses_no_job(bench):
    job_id = bench.job()
    polling(bench, [Away("no answer")] * 25)  # more than a phase may be taken up in vain
    bench.worker().run(once=True)
    assert bench.read(job_id).status == "succeeded", bench.said(job_id)
    assert bench.launcher.started == [job_id]


def test_a_cluster_without_room_is_waited_for(bench):
    job_id = bench.job()
    polling(bench, [NoSlot("no room")] * 25)
    bench.worker().run(once=True)
    assert bench.read(job_id).status == "succeeded", bench.said(job_id)


def test_a_machine_that_cannot_begin_is_the_reason(bench, monkeypatch):
    monkeypatch.setattr(type(bench.launcher), "_work", lambda self, folder, stop: None)
    job_id = bench.job()
    polling(bench, [Ended(code=66, why="node-3 does not see /srv/home/jobs/x")])
    bench.worker().run(once=True)
    error = bench.read(job_id).error
    assert error["code"] == "server_misconfigured"
    assert "could not begin" in error["message"]
    assert "/srv" not in str(error)
    assert bench.folder(job_id).read_json("failure.json")["detail"] == "node-3 does not see /srv/home/jobs/x"


def test_a_limit_of_time_is_no_death(bench, monkeypatch):
    work, cut = type(bench.launcher)._work, []

    def limited(self, folder, stop):
        cut.append(folder)
        if len(cut) > 5:
            work(self, folder, stop)

    monkeypatch.setattr(type(bench.launcher), "_work", limited)
    job_id = bench.job()
    polling(bench, [Ended(code=STOPPED)] * 5)
    bench.worker().run(once=True)
    assert bench.read(job_id).status == "succeeded", bench.said(job_id)
    assert len(cut) == 6
