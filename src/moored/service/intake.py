# SPDX-License-Identifier: Apache-2.0
"""The first phases of a job: its files are checked, its rows are screened, and what is left is what is trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from moored.data.load import save_rows
from moored.data.schema import Example, Row, normalise, overlap
from moored.service.claims import Claim, Told
from moored.service.database import File, Job
from moored.service.dialect import FEWEST
from moored.service.failures import Failed
from moored.service.folder import JobFolder
from moored.service.job_recipe import HELD_OUT_TASKS
from moored.service.life import State
from moored.service.policy import Policy
from moored.service.seams import Complaint, Seams
from moored.service.settings import ServerSettings

SHOWN = 100
"""Longest list in what a job says of its screening; the whole is in the job's folder."""


@dataclass(frozen=True, kw_only=True)
class Intake:
    """What becomes of an upload before anything trains.

    Args:
        settings: of the server.
        seams: the other parts.
    """

    settings: ServerSettings
    seams: Seams

    def check(self, claim: Claim, job: Job) -> State:
        """Read the files, and refuse what cannot be trained on."""
        policy = Policy.model_validate(job.policy)
        claim.note([Told(key="checking", message=f"Validating training file: {job.training_file}")])
        for param, file_id in (("training_file", job.training_file), ("validation_file", job.validation_file)):
            if file_id is None:
                continue
            path = self._bytes(claim, job, file_id, param)
            # Where rows that are too long are dropped, the screen does it; here their length is no complaint.
            counted = policy.models[job.model].source if policy.screen.too_long == "block" else None
            complaints = self.seams.check(path, limits=policy.limits, method=job.method["type"], counted_by=counted)
            if complaints:
                claim.note([_complained(param, number, each) for number, each in enumerate(complaints)])
                first, more = complaints[0], len(complaints) - 1
                what = param.replace("_", " ")
                said = f"The job failed due to an invalid {what}. {first.message}"
                said += f" ({more} more complaints)" if more else ""
                raise Failed(first.code or f"invalid_{param}", said, param)
        return claim.move("moved on", [Told(key="checked", message="Files validated; screening the rows")])

    def screen(self, claim: Claim, job: Job) -> State:
        """Look through the rows, and keep those that are trained on."""
        policy, folder = Policy.model_validate(job.policy), self._folder(job)
        given = self.seams.rows(self._bytes(claim, job, job.training_file, "training_file"))
        screening = self.seams.screen(given, policy, job.model)
        found = screening.record()
        folder.write_json("screening.json", found)
        shown = {"screening": _shortened(found)}
        lines = [Told(key="screened", message=screening.reason, level="warn")] if screening.reason else []

        def keep(session: Session, job: Job) -> None:
            job.safety = {**job.safety, **shown}

        claim.note(lines, change=keep)
        if screening.blocked:
            self.seams.log("job.blocked", job.id, {"reason": screening.reason})
            raise Failed("data_screen", screening.reason, "training_file")
        if len(screening.rows) < FEWEST:
            said = (
                f"Training file has {len(screening.rows)} example(s) left after the screen dropped "
                f"{len(given) - len(screening.rows)} of {len(given)}, but must have at least {FEWEST} examples."
            )
            raise Failed("invalid_n_examples", said, "training_file")
        save_rows(screening.rows, folder.rows)
        lines = self._hold_out(claim, job, policy, screening.rows)
        lines.append(Told(key="queued", message="Files validated, moving job to queued state"))
        return claim.move("moved on", lines)

    def _hold_out(self, claim: Claim, job: Job, policy: Policy, trained: Sequence[Example]) -> list[Told]:
        """The rows of the validation file that are not trained on."""
        folder = self._folder(job)
        folder.forget(folder.held_out.name)
        if job.validation_file is None:
            return []
        if used := sorted(set(HELD_OUT_TASKS) & set(policy.audit.tasks)):
            said = f"The validation file is not measured: this server's policy uses {used[0]} otherwise"
            return [Told(key="held out", message=said, level="warn")]
        given = self.seams.rows(self._bytes(claim, job, job.validation_file, "validation_file"))
        shared = overlap(given, trained)
        kept = [one for one in map(_learnt, given) if one.answer and normalise(one.question) not in shared]
        if kept:
            save_rows(kept, folder.held_out)
        if len(kept) == len(given):
            return []
        left_out = len(given) - len(kept)
        said = f"{left_out} of {len(given)} rows of the validation file are left out: their prompts are trained on"
        return [Told(key="held out", message=said, level="warn")]

    def _folder(self, job: Job) -> JobFolder:
        return JobFolder(self.settings.job(job.id))

    def _bytes(self, claim: Claim, job: Job, file_id: str, param: str) -> Path:
        """The bytes of a file of the job's project."""
        with claim.database.reading() as session:
            file = session.scalar(select(File).where(File.id == file_id, File.project_id == job.project_id))
        if file is None:
            raise Failed("file_not_found", f"The file {file_id} was deleted before it was read.", param)
        try:
            return self.seams.bytes_of(file.sha256)
        except FileNotFoundError as error:
            said = f"The bytes of {file_id} are not on this server any more; upload the file again."
            raise Failed("file_not_found", said, param) from error


def _complained(param: str, number: int, complaint: Complaint) -> Told:
    return Told(key=f"complaint {param} {number}", message=complaint.message, level="error")


def _learnt(example: Example) -> Row:
    """The row whose answer an example teaches: of a preference, the one with the better answer."""
    return example if isinstance(example, Row) else example.preferred


def _shortened(value: Any) -> Any:
    """Plain JSON with its long lists cut."""
    if isinstance(value, Mapping):
        return {name: _shortened(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shortened(item) for item in value[:SHOWN]]
    return value
