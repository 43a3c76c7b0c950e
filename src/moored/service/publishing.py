# SPDX-License-Identifier: Apache-2.0
"""What a job has made becomes a model: a folder of weights, copied whole or not at all, and a row that binds it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from sqlalchemy import select

from moored.errors import CheckpointError
from moored.service.clock import now
from moored.service.database import Database, Job, Model, Project
from moored.service.durable import sync
from moored.service.fingerprints import digest
from moored.service.ids import new_id
from moored.service.settings import ServerSettings

KEPT = (".safetensors", ".json", ".txt", ".jinja", ".md")
"""What may stand in the folder of a served model: data, and nothing that a loader would run."""


@runtime_checkable
class Decided(Protocol):
    """What `publish` reads of the gate's decision."""

    @property
    def passed(self) -> bool:
        """Whether the model may be served."""


def publish(
    database: Database,
    settings: ServerSettings,
    job: Job,
    source: Path,
    start: str,
    decision: Decided,
    *,
    texts: Mapping[str, str] | None = None,
) -> Model:
    """Keep what a job has made under the name that it gets, bound to its bytes. Twice is once.

    Args:
        database: where the model is promised.
        settings: where it is kept.
        job: what made it.
        source: the folder of the adapter, or of whole weights.
        start: the folder or hub id of the weights under it.
        decision: of the gate; a model that passed waits if the job's policy wants a person to approve it.
        texts: further files for people and programs to put beside the weights (README.md, moored.json), by name.

    Returns:
        The row: "passed", "waiting" or "refused".

    Raises:
        CheckpointError: `source` holds something else than safetensors, JSON and text, or what the job has published
            before is not what it was.
        OSError: the disk is full, or a file cannot be read.
    """
    known = _published(database, settings, job)
    if known is not None:
        return known
    folder = put_in_place(source, settings.model(job.id), texts or {})
    kept = _relative(settings, start)
    found = digest(folder, start_path(settings, kept))
    approval = bool(job.policy.get("gate", {}).get("approval", True))
    state = "refused" if decision.passed is not True else "waiting" if approval else "passed"
    with database.writing() as session:
        project = session.get(Project, job.project_id)
        model = Model(
            id=_name(job, project.name if project else ""),
            project_id=job.project_id,
            job_id=job.id,
            base=job.model,
            start=kept,
            folder=folder.relative_to(settings.home).as_posix(),
            sha256=found,
            state=state,
            created_at=now(),
        )
        session.add(model)
    return model


def _published(database: Database, settings: ServerSettings, job: Job) -> Model | None:
    """What the job has published before, if it has."""
    with database.reading() as session:
        known = session.scalar(select(Model).where(Model.job_id == job.id))
    if known is None or known.state == "deleted":
        return known
    if digest(settings.home / known.folder, start_path(settings, known.start)) != known.sha256:
        raise CheckpointError(f"job {job.id} has published {known.id}, and its files are not what they were")
    return known


def start_path(settings: ServerSettings, start: str) -> str:
    """`Model.start` as a folder on this machine, or a hub id.

    Args:
        settings: where the home is.
        start: as it is in the database.
    """
    here = settings.home / start
    return str(here) if here.is_dir() or start.startswith("store/") else start


def _relative(settings: ServerSettings, start: str) -> str:
    folder, home = Path(start).resolve(), settings.home.resolve()
    if not folder.is_dir():
        return start  # a hub id
    return folder.relative_to(home).as_posix() if folder.is_relative_to(home) else str(folder)


def _name(job: Job, project: str) -> str:
    """For example "ft:smollm2:my-project:support:Ab12..."."""
    words = [re.sub(r"[^A-Za-z0-9._-]+", "-", word).strip("-") for word in (project, job.suffix or "")]
    return ":".join(("ft", job.model, *words, job.id.rpartition("-")[2]))


def put_in_place(source: Path, folder: Path, texts: Mapping[str, str]) -> Path:
    """Copy a folder under a temporary name, make it durable, and rename it into place over what is there.

    Args:
        source: plain files, no folders.
        folder: where it goes.
        texts: further files, by name; they go before those of `source`.

    Raises:
        CheckpointError: something in it may not be served, or there is nothing.
        OSError: the disk is full, or a file cannot be read.
    """
    files = [path for path in sorted(source.iterdir()) if path.name not in texts]
    for name in (*(path.name for path in files), *texts):
        if Path(name).suffix not in KEPT or Path(name).name != name:
            raise CheckpointError(f"{name} cannot be served: only {', '.join(KEPT)} files are")
    for path in files:
        if path.is_symlink() or not path.is_file():
            raise CheckpointError(f"{path.name} cannot be served: it is no plain file")
    if not any(path.suffix == ".safetensors" for path in files):
        raise CheckpointError(f"{source} holds no safetensors file; there is nothing to serve")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = folder.with_name(new_id(f".{folder.name}"))
    try:
        work.mkdir(mode=0o700)
        for path in files:
            shutil.copyfile(path, work / path.name)
        for name, text in texts.items():
            (work / name).write_text(text, encoding="utf-8")
        for path in work.iterdir():
            path.chmod(0o600)
            sync(path)
        sync(work)
        if folder.exists():  # of an attempt that died; no row promises it, or the caller makes a new one
            shutil.rmtree(folder)
        work.rename(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder
