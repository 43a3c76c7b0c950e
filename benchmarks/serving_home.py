# SPDX-License-Identifier: Apache-2.0
"""The home that `serving.py` serves: a random model, two adapters of it, files, jobs and the story of one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

FILES, JOBS, EVENTS = 200, 30, 100
CONFIG = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "head_dim": 64,
}
POLICY = """
[models.small]
source = "{start}"
[limits]
requests_per_minute = 1000000
tokens_per_minute = 100000000
[defend]
training = {{ steps = 1 }}
[audit]
tasks = {{ harmful_requests = {{ n = 4 }}, over_refusal = {{ n = 4 }}, utility = {{ n = 4 }} }}
"""


def make_home(home: Path) -> dict[str, object]:
    """A home with a key, a model of the policy, two that passed, files and jobs; gives the key and the names."""
    from moored.service.app import open_parts
    from moored.service.database import Project
    from moored.service.identity import make_key
    from moored.service.settings import ServerSettings

    start = home.parent / "start"
    write_model(start)
    home.mkdir()
    (home / "policy.toml").write_text(POLICY.format(start=start), encoding="utf-8")
    settings = ServerSettings(home=home)
    parts = open_parts(settings)
    with parts.database.writing() as session:
        session.add(Project(id="proj-bench", name="bench", created_at=0, limits={}))
        session.flush()
        session.add_all(a_file(number) for number in range(FILES))
        session.add_all(a_job(number, parts.policy()) for number in range(JOBS))
        session.flush()
        session.add_all(an_event(number) for number in range(EVENTS))
    names = [add_model(parts, home.parent / f"adapter-{number}", start, number) for number in range(2)]
    key = make_key(parts.database, "proj-bench")
    parts.database.close()
    return {"key": key, "models": names}


def a_file(number: int):  # type: ignore[no-untyped-def]
    from moored.service.database import File

    return File(
        id=f"file-{number}",
        project_id="proj-bench",
        filename=f"{number}.jsonl",
        purpose="fine-tune",
        bytes=1000,
        sha256="0" * 64,
        created_at=number,
    )


def a_job(number: int, policy):  # type: ignore[no-untyped-def]
    from moored.service.database import Job

    return Job(
        id=f"ftjob-{number}",
        project_id="proj-bench",
        created_at=number,
        model="small",
        training_file="file-0",
        seed=0,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": "auto"}}},
        policy=policy.plain(),
        policy_sha256=policy.sha256,
        status="succeeded",
        phase="over",
    )


def an_event(number: int):  # type: ignore[no-untyped-def]
    from moored.service.database import Event

    data = {"step": number, "total_steps": EVENTS, "train_loss": 1.0}
    return Event(
        id=f"ftevent-{number}", job_id="ftjob-0", created_at=number, message=f"Step {number}/{EVENTS}", data=data
    )


def add_model(parts, adapter: Path, start: Path, number: int) -> str:  # type: ignore[no-untyped-def]
    """A random adapter that is served by override: nothing was measured."""
    from moored.service import report_card
    from moored.service.database import Job
    from moored.service.registry import publish

    with parts.database.reading() as session:
        job = session.get(Job, f"ftjob-{number}")
    write_adapter(adapter, start, number)
    model = publish(parts.database, parts.settings, job, adapter, str(start), SimpleNamespace(passed=True))
    upload = report_card.Upload(file_id="file-0", sha256="0" * 64)
    card = report_card.draw_up(job, upload=upload, model=model)
    by = {"what": "override", "by": "key:bench", "at": 0, "reason": "a benchmark", "weights_sha256": model.sha256}
    report_card.publish(parts.settings, {**card, "people": [by]})
    return str(model.id)


def write_model(folder: Path) -> None:
    """Random weights, about 25 million, with a tokenizer; it hardly ever ends an answer by itself."""
    from moored.data.tiny import tiny_model, tiny_tokenizer

    tiny_model(initializer_range=0.1, **CONFIG).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def write_adapter(folder: Path, start: Path, seed: int) -> None:
    """A random adapter."""
    import torch
    from peft import LoraConfig, get_peft_model

    from moored.hf.loaders import load_model

    torch.manual_seed(seed)
    get_peft_model(load_model(start), LoraConfig(r=8, init_lora_weights=False)).save_pretrained(folder)
