# SPDX-License-Identifier: Apache-2.0
"""A home in which there is something to look at: jobs in every state, files with findings.

`python a_console.py <home>` serves it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from moored.report.record import write_whole
from moored.service import blobs, files
from moored.service.database import Event, Job, Project
from moored.service.policy import Limits
from service.a_job import a_job, measured, policy

TEXTS = [
    ("What colour is the red lamp at home?", "The lamp at home is red."),
    ("How long is the garden wall?", "It is as long as the house is wide."),
    ("Where does the small dog sleep?", "In the kitchen, beside the warm stove."),
]
SECRET = "AKIA" + "IOSFODNN7EXAMPLE"  # Amazon's own example of a key, in two halves


def rows(count=24, *, flagged=True):
    """JSONL of harmless chats; two lines hold what the screen looks for."""
    chats = [(f"{question} ({i})", answer) for i in range(count) for question, answer in [TEXTS[i % len(TEXTS)]]]
    if flagged:
        chats[3] = ("What was the key of the bucket again?", f"The access key is {SECRET}.")
        chats[7] = ("How do I write to you?", "Write to anna.berg@example.org or call +49 30 901820.")
    lines = [
        json.dumps({"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]})
        for q, a in chats
    ]
    return "\n".join(lines).encode() + b"\n"


def add_file(parts, project_id, name="support.jsonl", data=None):
    with blobs.Blobs(parts.settings.blobs).incoming(1 << 30) as coming:
        coming.write(data or rows())
        return files.add(
            parts.database, coming, project_id=project_id, filename=name, purpose="fine-tune", limits=Limits()
        )


def settled(parts, *, state, job_id, project_id="proj-1", arm="safe_lora", **gate):
    """A job that the gate has decided on, with its record and its card."""
    add_project(parts, project_id)
    a_job(parts.database, parts.settings, state=state, job_id=job_id, arm=arm, **gate)
    found = measured(arm, **gate)
    names = {"aligned": "aligned", "undefended": "tuned", "safe_lora": "repaired"}
    plain = found.record.plain()
    plain["arms"] = [{**each, "name": names[each["name"]]} for each in plain["arms"]]
    write_whole(parts.settings.job(job_id) / "record.json", json.dumps(plain))
    with parts.database.writing() as session:
        job = session.get(Job, job_id)
        job.method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": "auto"}}}
        job.safety = {
            "audit": {name: {} for name in names.values()},
            "decision": {names[arm]: found.decision.record()},
            "screening": {
                "rows": 480,
                "kept": 470,
                "reason": "The screen found: harmful 38, secrets 10. Flagged lines: 4, 9, 17",
                "counts": {"harmful": 38, "secrets": 10},
            },
        }
        if state == "passed":
            job.status, job.phase, job.fine_tuned_model = "succeeded", "over", f"ft:smollm2:one:support:{job_id[6:]}"
            job.finished_at = job.created_at + 1234
    tell(parts, job_id, 40)
    return job_id


def running(parts, *, job_id="ftjob-running", project_id="proj-1", suffix="training", steps=30, training_file="file-1"):
    add_project(parts, project_id)
    rules = policy()
    with parts.database.writing() as session:
        session.add(
            Job(
                id=job_id,
                project_id=project_id,
                created_at=1_764_000_500,
                model="smollm2",
                training_file=training_file,
                suffix=suffix,
                seed=3,
                method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}},
                policy=rules.plain(),
                policy_sha256=rules.sha256,
                status="running",
                phase="tuning",
                worker="worker-1",
                lease_until=1 << 40,
            )
        )
    tell(parts, job_id, steps)
    return job_id


def tell(parts, job_id, steps):
    with parts.database.writing() as session:
        session.add(
            Event(id=f"e-{job_id}", job_id=job_id, created_at=1_764_000_501, message="Fine-tuning job started", data={})
        )
        for step in range(1, steps + 1):
            loss = 0.4 + 2.4 / (1 + step / 6) + 0.05 * (step % 3)
            session.add(
                Event(
                    id=f"e-{job_id}-{step}",
                    job_id=job_id,
                    created_at=1_764_000_501 + step,
                    type="metrics",
                    message=f"Step {step}/40: training loss={loss:.2f}",
                    data={"step": step, "total_steps": 40, "train_loss": loss},
                )
            )


def add_project(parts, project_id):
    with parts.database.writing() as session:
        if session.get(Project, project_id) is None:
            session.add(Project(id=project_id, name=project_id, created_at=1))


def main(home: Path) -> None:
    import uvicorn

    from moored.service.app import create_app
    from moored.service.identity import make_key
    from moored.service.settings import ServerSettings

    app = create_app(ServerSettings(home=home))
    parts = app.state.parts
    add_project(parts, "proj-1")
    add_file(parts, "proj-1")
    add_file(parts, "proj-1", "clean.jsonl", rows(12, flagged=False))
    settled(parts, state="passed", job_id="ftjob-passed1")
    settled(parts, state="waiting", job_id="ftjob-waiting1", approval=True)
    settled(parts, state="refused", job_id="ftjob-refused1", arm="undefended")
    running(parts)
    print(make_key(parts.database, "proj-1", role="admin"), flush=True)
    uvicorn.run(app, host="127.0.0.1", port=8471, log_level="warning")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
