# SPDX-License-Identifier: Apache-2.0
"""What people decide of a model: approve one that passed and waits, refuse it, or serve one that the gate refused.

Each binds to the SHA-256 of the weights that the person was shown. The order is: audit log, report card, database. So
whatever a crash interrupts, nothing is served of which the log and the card do not say why; doing it again finishes it.

After an override the job stays `failed` with `safety_gate`, because that is what the gate said; its
`fine_tuned_model` names what is served all the same, and `safety["people"]` and the card say by whose word.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from filelock import FileLock
from sqlalchemy import select
from sqlalchemy.orm import Session

from moored.errors import MooredError
from moored.service import audit_log, report_card
from moored.service.clock import now
from moored.service.database import Database, Event, Job, Model
from moored.service.identity import Caller
from moored.service.ids import new_id
from moored.service.problems import ApiProblem, missing_job, wrong
from moored.service.settings import ServerSettings

What = Literal["approve", "refuse", "override"]
Digest = Callable[[Model], str]
"""The SHA-256 over the weights of a model as they are on the disk now."""

SHORTEST, LONGEST = 20, 2000
"""Letters of the reason of an override, and of any reason."""
ON_THE_MACHINE = "os:"
"""In front of the name of a user of the server's machine, who needs no key."""


@dataclass(frozen=True, kw_only=True)
class Offices:
    """Where decisions of people are written.

    Args:
        settings: where the home is.
        database: the tables.
        digest: measures weights; None: `registry.digest`.
    """

    settings: ServerSettings
    database: Database
    digest: Digest | None = None

    def approve(self, job_id: str, caller: Caller, *, sha256: str, reason: str = "") -> Model:
        """Let a model that passed the gate, and waits for a person, be served.

        Args:
            job_id: that made it.
            caller: an operator.
            sha256: of the weights, as the person was shown it.
            reason: for the log and the card.

        Raises:
            ApiProblem: 403 without an operator's key, 404 if there is no such job for them, 400 if the model does not
                wait, the weights are not those that were shown, or the reason cannot be written down.
        """
        return self._decide("approve", job_id, caller, sha256, reason)

    def refuse(self, job_id: str, caller: Caller, *, sha256: str, reason: str = "") -> Model:
        """Refuse a model that waits for a person; see `approve`."""
        return self._decide("refuse", job_id, caller, sha256, reason)

    def override(self, job_id: str, caller: Caller, *, sha256: str, reason: str) -> Model:
        """Serve a model that the gate or a person refused. The card says so from then on; see `approve`.

        Args:
            job_id: that made it.
            caller: an operator.
            sha256: of the weights, as the person was shown it.
            reason: at least `SHORTEST` letters.
        """
        if len(reason.strip()) < SHORTEST:
            raise wrong(f"`reason` of an override must have at least {SHORTEST} letters; say why", "reason")
        return self._decide("override", job_id, caller, sha256, reason)

    def shown(self, job_id: str, caller: Caller) -> Model:
        """The model of a job, for a person who is to decide.

        Raises:
            ApiProblem: as in `approve`.
        """
        caller.must_be("operator")
        with self.database.reading() as session:
            return _model(session, job_id, caller)[1]

    def _decide(self, what: What, job_id: str, caller: Caller, sha256: str, reason: str) -> Model:
        caller.must_be("operator")
        reason = _checked(reason)
        with self.database.reading() as session:
            job, model = _model(session, job_id, caller)
        with FileLock(self.settings.job(job.id) / "deciding.lock"):
            with self.database.reading() as session:
                job, model = _model(session, job_id, caller)  # as it is now that nobody else decides
            _may(what, job, model)
            self._same(model, sha256, refusing=what == "refuse")
            entry = {
                "what": what,
                "by": _actor(caller),
                "at": now(),
                "reason": reason,
                "weights_sha256": model.sha256,
            }
            self._write_down(what, job_id, entry)
            with self.database.writing() as session:
                job, model = _model(session, job_id, caller, lock=True)
                _may(what, job, model)
                _apply(session, what, job, model, entry)
            return model

    def _write_down(self, what: What, job_id: str, entry: dict[str, Any]) -> None:
        """First to the log, then on the card; it takes effect only after both."""
        try:
            details = {name: entry[name] for name in ("reason", "weights_sha256")}
            audit_log.append(self.settings.home, entry["by"], f"job.{what}", job_id, details)
            report_card.amend(self.settings, job_id, entry)
        except MooredError as error:
            raise ApiProblem(
                500,
                "The decision could not be written down, so it was not taken: the audit log or the report card is not "
                "as this server wrote it. Run `moored audit-log verify` on its machine.",
                headers={"x-should-retry": "false"},
            ) from error

    def _same(self, model: Model, sha256: str, *, refusing: bool) -> None:
        """Refuse a decision about other weights than those that are there; a refusal needs none that are whole."""
        if sha256 != model.sha256:
            raise wrong(
                "`weights_sha256` is not that of this job's model; look at its report card again", "weights_sha256"
            )
        if refusing:
            return
        try:
            found = (self.digest or self._digest)(model)
        except (MooredError, OSError) as error:
            raise wrong("The weights of this model cannot be read, so nobody can decide about them.") from error
        if found != model.sha256:
            raise wrong(
                "The weights of this model were changed since they were measured, so nobody can decide about them.",
                code="weights_changed",
            )

    def _digest(self, model: Model) -> str:
        from moored.service.registry import digest, start_path

        return str(digest(self.settings.home / model.folder, start_path(self.settings, model.start)))


def _model(session: Session, job_id: str, caller: Caller, *, lock: bool = False) -> tuple[Job, Model]:
    """A job and its model: of the caller's project, or for an admin of any.

    Raises:
        ApiProblem: 404.
    """
    jobs, models = select(Job).where(Job.id == job_id), select(Model).where(Model.job_id == job_id)
    if caller.role != "admin":
        jobs = jobs.where(Job.project_id == caller.project_id)
    if lock:
        jobs, models = jobs.with_for_update(), models.with_for_update()
    job = session.scalar(jobs)
    if job is None:
        raise missing_job(job_id)
    model = session.scalar(models)
    if model is None:
        raise wrong(f"The job {job_id} has made no model, so there is nothing to decide.")
    return job, model


def _may(what: What, job: Job, model: Model) -> None:
    """Whether this can be decided now.

    Raises:
        ApiProblem: 400.
    """
    if what == "override":
        if model.state != "refused":
            raise wrong(f"Only a refused model can be served by override; this one is {model.state}.")
    elif model.state != "waiting" or job.phase != "approving":
        raise wrong(f"This model does not wait for a person: it is {model.state}, and its job is {job.status}.")


def _apply(session: Session, what: What, job: Job, model: Model, entry: dict[str, Any]) -> None:
    """What the decision changes in the database."""
    model.state = "refused" if what == "refuse" else "passed"
    job.safety = {**job.safety, "people": [*job.safety.get("people", []), entry]}
    job.fine_tuned_model = None if what == "refuse" else model.id
    if what == "refuse":
        message = f"An operator refused this model: {entry['reason']}" if entry["reason"] else "An operator refused it."
        job.error = {"code": "not_approved", "message": message, "param": None}
    if what != "override":
        job.status, job.phase, job.wanted = "failed" if what == "refuse" else "succeeded", "over", ""
        job.finished_at = now()
    said = {
        "approve": f"An operator approved the model. New fine-tuned model created: {model.id}",
        "refuse": "An operator refused the model",
        "override": f"An operator overrode the safety gate; {model.id} did not pass it, and is served",
    }[what]
    level = {"approve": "info", "refuse": "error", "override": "warn"}[what]
    session.add(
        Event(id=new_id("ftevent"), job_id=job.id, created_at=now(), level=level, message=said, data={"decided": entry})
    )


def _actor(caller: Caller) -> str:
    return caller.key_id if caller.key_id.startswith(ON_THE_MACHINE) else f"key:{caller.key_id}"


def _checked(reason: str) -> str:
    """A reason that can be written down.

    Raises:
        ApiProblem: 400.
    """
    reason = " ".join(reason.split())
    if len(reason) > LONGEST:
        raise wrong(f"`reason` must have at most {LONGEST} letters; got {len(reason)}", "reason")
    if not reason.isprintable():
        raise wrong("`reason` must be plain text, without control characters", "reason")
    if audit_log.looks_secret(reason):
        raise wrong("`reason` holds something like a secret key, and it is published on the report card", "reason")
    return reason
