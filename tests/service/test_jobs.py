# SPDX-License-Identifier: Apache-2.0
"""`/v1/fine_tuning` as the real client sees it."""

from __future__ import annotations

import io
import json

import openai
import pytest

from moored.data.tiny import tiny_rows
from moored.service.claims import Kept, Told, claim
from moored.service.database import Job

MODEL = "smollm2"


def upload(client, *, purpose="fine-tune", rows=12):
    lines = [json.dumps({"messages": [dict(turn) for turn in row.messages]}) for row in tiny_rows(rows)]
    name = "rows.jsonl"
    return client.files.create(file=(name, io.BytesIO("\n".join(lines).encode())), purpose=purpose).id


@pytest.fixture
def client(server):
    with server.client() as made:
        yield made


@pytest.fixture
def file_id(client):
    return upload(client)


def test_a_job_as_the_client_reads_it(server, client, file_id):
    job = client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=file_id,
        suffix="support",
        seed=7,
        metadata={"team": "a"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}},
        integrations=[{"type": "wandb", "wandb": {"project": "p"}}],
        extra_body={"safety": {"gate": {"harmful_score": 5}, "screen": {"harmful": "block"}}},
    )
    assert job == client.fine_tuning.jobs.retrieve(job.id)
    assert (job.object, job.status, job.model, job.seed) == ("fine_tuning.job", "validating_files", MODEL, 7)
    assert (job.fine_tuned_model, job.finished_at, job.error, job.result_files) == (None, None, None, [])
    assert job.hyperparameters.n_epochs == job.method.supervised.hyperparameters.n_epochs == 3
    assert job.hyperparameters.batch_size == "auto"
    assert (job.metadata, job.integrations[0].wandb.project) == ({"team": "a"}, "p")
    assert job.x_safety["phase"] == "checking"
    with server.parts.database.reading() as session:
        policy = session.get(Job, job.id).policy
    assert (policy["gate"]["harmful_score"], policy["screen"]["harmful"]) == (5, "block")
    events = client.fine_tuning.jobs.list_events(job.id).data
    assert [event.message for event in events] == [f"Created fine-tuning job: {job.id}"]


def test_hyperparameters_where_older_clients_put_them(client, file_id):
    job = client.fine_tuning.jobs.create(model=MODEL, training_file=file_id, hyperparameters={"batch_size": 4})
    assert job.method.supervised.hyperparameters.batch_size == 4


WRONG = {
    "model": ({"model": "smolm2"}, "did you mean 'smollm2'", "model"),
    "file": ({"training_file": "file-nope"}, "invalid training_file: file-nope", "training_file"),
    "validation": ({"validation_file": "file-nope"}, "invalid validation_file", "validation_file"),
    "suffix": ({"suffix": "x" * 65}, "65 characters; at most 64", "suffix"),
    "metadata": ({"metadata": {str(i): "x" for i in range(17)}}, "17 keys; at most 16", "metadata"),
    "value": ({"metadata": {"a": "x" * 513}}, "values at most 512", "metadata"),
    "seed": ({"seed": -1}, "whole number from 0", "seed"),
    "epochs": ({"hyperparameters": {"n_epochs": 11}}, "from 1 to 10", "hyperparameters.n_epochs"),
    "batch": ({"hyperparameters": {"batch_size": 0}}, "from 1 to 256", "hyperparameters.batch_size"),
    "rate": (
        {"method": {"type": "supervised", "supervised": {"hyperparameters": {"learning_rate_multiplier": -1.0}}}},
        "above 0",
        "method.supervised.hyperparameters.learning_rate_multiplier",
    ),
    "unknown": ({"hyperparameters": {"epochs": 1}}, "Unknown hyperparameter 'epochs'", "hyperparameters.epochs"),
    "method": ({"method": {"type": "reinforcement"}}, "does not train by the method 'reinforcement'", "method.type"),
    "beta": (
        {"method": {"type": "supervised", "supervised": {"hyperparameters": {"beta": 0.1}}}},
        "Unknown hyperparameter 'beta'",
        "method.supervised.hyperparameters.beta",
    ),
    "integration": ({"integrations": [{"type": "x"}]}, "only integration", "integrations"),
    "looser": ({"extra_body": {"safety": {"gate": {"harmful_score": 50}}}}, "stricter", "safety.gate.harmful_score"),
    "report": ({"extra_body": {"safety": {"screen": {"harmful": "report"}}}}, "stricter", "safety.screen.harmful"),
    "misspelt": ({"extra_body": {"safety": {"gate": {"harmful": 5}}}}, "did you mean", "safety.gate.harmful"),
    "more": ({"extra_body": {"reward": 1}}, "Unknown parameter: 'reward'", "reward"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(client, file_id, case):
    change, said, param = WRONG[case]
    with pytest.raises(openai.BadRequestError, match=said) as caught:
        client.fine_tuning.jobs.create(**{"model": MODEL, "training_file": file_id, **change})
    assert caught.value.param == param


def test_a_file_for_something_else_is_refused(client):
    other = upload(client, purpose="user_data")
    with pytest.raises(openai.BadRequestError, match="purpose 'user_data'"):
        client.fine_tuning.jobs.create(model=MODEL, training_file=other)


def test_lists_page_by_page_and_by_metadata(client, file_id):
    made = [
        client.fine_tuning.jobs.create(model=MODEL, training_file=file_id, metadata={"n": str(i)} if i else {}).id
        for i in range(5)
    ]
    assert sorted(job.id for job in client.fine_tuning.jobs.list(limit=2)) == sorted(made)
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"n": "3"})] == [made[3]]
    assert [job.id for job in client.fine_tuning.jobs.list(extra_query={"metadata": "null"})] == [made[0]]
    with pytest.raises(openai.BadRequestError):
        client.fine_tuning.jobs.list(after="ftjob-nope")


def test_nobody_else_sees_a_job(server, client, file_id):
    job = client.fine_tuning.jobs.create(model=MODEL, training_file=file_id)
    with server.client(server.other_key) as other:
        _sees_nothing(other, job, file_id)


def _sees_nothing(other, job, file_id):
    assert list(other.fine_tuning.jobs.list()) == []
    with pytest.raises(openai.BadRequestError, match="invalid training_file"):
        other.fine_tuning.jobs.create(model=MODEL, training_file=file_id)
    asks = [other.fine_tuning.jobs.retrieve, other.fine_tuning.jobs.cancel, other.fine_tuning.jobs.pause]
    asks += [other.fine_tuning.jobs.resume, other.fine_tuning.jobs.list_events]
    asks += [other.fine_tuning.jobs.checkpoints.list]
    for ask in asks:
        with pytest.raises(openai.NotFoundError, match=f"Could not find fine tune: {job.id}"):
            ask(job.id)


def test_what_a_user_wants_of_a_job(server, client, file_id):
    jobs = client.fine_tuning.jobs
    job = jobs.create(model=MODEL, training_file=file_id)
    assert jobs.pause(job.id).status == "paused"
    with pytest.raises(openai.BadRequestError, match="already paused"):
        jobs.pause(job.id)
    assert jobs.resume(job.id).status == "validating_files"
    held = claim(server.parts.database, 60, ("validating_files",))
    assert jobs.pause(job.id).x_safety["wanted"] == "pause"  # the worker has to stop first
    assert held.move("stopped").status == "paused"
    done = jobs.cancel(job.id)
    assert (done.status, done.finished_at is not None) == ("cancelled", True)
    for ask in (jobs.cancel, jobs.pause, jobs.resume):
        with pytest.raises(openai.BadRequestError, match="it has already been cancelled"):
            ask(job.id)


def test_events_and_checkpoints(server, client, file_id):
    job = client.fine_tuning.jobs.create(model=MODEL, training_file=file_id)
    held = claim(server.parts.database, 60, ("validating_files",))
    for step in (5, 10, 15):
        data = {"step": step, "train_loss": 1.5}
        held.note(
            [Told(key=str(step), message=f"Step {step}", type="metrics", data=data)], [Kept(step=step, metrics=data)]
        )
        held.note([Told(key=str(step), message=f"Step {step}")], [Kept(step=step, metrics=data)])  # told again
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=2))
    assert [event.message for event in events[:3]] == ["Step 15", "Step 10", "Step 5"]
    assert len(events) == 4
    assert (events[0].type, events[0].data["train_loss"]) == ("metrics", 1.5)
    kept = list(client.fine_tuning.jobs.checkpoints.list(job.id, limit=2))
    assert [each.step_number for each in kept] == [15, 10, 5]
    assert kept[0].metrics.train_loss == 1.5
    assert kept[0].fine_tuned_model_checkpoint.endswith(":ckpt-step-15")


def test_graders_are_never_run(client):
    grader = {"type": "python", "name": "g", "source": "import os"}
    with pytest.raises(openai.InternalServerError, match="does not run graders") as caught:
        client.fine_tuning.alpha.graders.run(grader=grader, model_sample="x")
    assert caught.value.status_code == 501
