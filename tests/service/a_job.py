# SPDX-License-Identifier: Apache-2.0
"""A job with made-up numbers, as the pipeline leaves it when the gate has spoken."""

import tomllib

from moored.report.demo import demo_record
from moored.service.database import Base, Database, Job, Model, Project
from moored.service.gate import decide
from moored.service.policy import Policy, default_policy
from moored.service.report_card import Measured, Upload, draw_up, publish

SHA = "ab" * 32


def policy(**gate):
    tree = tomllib.loads(default_policy())
    return Policy.model_validate({**tree, "gate": {**tree["gate"], **gate}})


def record(**changed):
    """Of the demo: aligned, then undefended, then repaired with Safe LoRA."""
    plain = demo_record().plain()
    keep = {"aligned", "undefended", "safe_lora"}
    plain["arms"] = [arm for arm in plain["arms"] if arm["name"] in keep]
    plain |= {"demonstration": False, "expectations": [], "reported": [], **changed}
    return type(demo_record()).read(plain)


def measured(arm="safe_lora", **gate):
    found = record()
    decision = decide(found, policy(**{"over_refusal_increase": 30, **gate}), arm=arm, start="aligned")
    return Measured(record=found, decision=decision, tuned="" if arm == "undefended" else "undefended")


def a_database(home):
    database = Database(f"sqlite:///{home / 'moored.sqlite'}")
    Base.metadata.create_all(database.engine)
    with database.writing() as session:
        session.add_all(
            [Project(id="proj-1", name="one", created_at=1), Project(id="proj-2", name="two", created_at=1)]
        )
    return database


def a_job(database, settings, *, state="waiting", arm="safe_lora", job_id="ftjob-1", **gate):
    """A job with its model and its card; `state` is that of the model."""
    found, rules = measured(arm, **gate), policy(**gate)
    job = Job(
        id=job_id,
        project_id="proj-1",
        created_at=1_764_000_000,
        model="smollm2",
        training_file="file-1",
        suffix="support",
        seed=7,
        method={"type": "supervised"},
        policy=rules.plain(),
        policy_sha256=rules.sha256,
        hyperparameters={"n_epochs": 2},
        trained_tokens=12_345,
        status="failed" if state == "refused" else "running",
        phase="over" if state == "refused" else "approving",
        error={"code": "safety_gate", "message": found.decision.sentence, "param": None}
        if state == "refused"
        else None,
    )
    model = Model(
        id=f"ft:smollm2:one:support:{job_id[6:]}",
        project_id="proj-1",
        job_id=job_id,
        base="smollm2",
        start="store/aligned",
        folder=f"models/{job_id}",
        sha256=SHA,
        state=state,
        created_at=1_764_000_100,
    )
    with database.writing() as session:
        session.add(job)
        session.flush()
        session.add(model)
    upload = Upload(
        file_id="file-1", sha256="cd" * 32, rows=480, used=470, flagged={"harmful": 38}, dropped={"secrets": 10}
    )
    return publish(settings, draw_up(job, upload=upload, measured=found, model=model))
