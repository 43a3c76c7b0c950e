# SPDX-License-Identifier: Apache-2.0
"""A worker's hold on a job: taken atomically, kept by a heartbeat, and proven again in every write.

A worker that was thought dead and is not finds, at its next write, that the job has another token: it stops there.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, or_, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from moored.service.clock import now
from moored.service.database import Checkpoint, Database, Event, Job, Model
from moored.service.life import Happening, State, Status, after

T = TypeVar("T")

FAR = 10
"""A lease that ends so many leases from now was written by a clock that was wrong, and is void."""
PATIENCE = 5
"""Times that a write is tried on a database that is locked or away."""


class Lost(Exception):
    """Another worker has the job."""


class Interrupted(Exception):
    """Somebody wants the job stopped, or its worker is to end."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """A line of a job's story.

    Args:
        key: of the line within the job; a line with a key that was told before is not told again.
        message: for the user.
        level: "info", "warn" or "error".
        type: "message" or "metrics".
        data: numbers and names.
    """

    key: str
    message: str
    level: str = "info"
    type: str = "message"
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The numbers of a checkpoint.

    Args:
        step: of the training.
        metrics: what is known of it.
    """

    step: int
    metrics: dict[str, Any]


def state_of(job: Job) -> State:
    """Where a job is."""
    return State(
        status=job.status,  # type: ignore[arg-type]
        phase=job.phase,  # type: ignore[arg-type]
        wanted=job.wanted,  # type: ignore[arg-type]
        held=job.worker is not None,
    )


def place(session: Session, job: Job, state: State) -> None:
    """Put a job where it now is; of one that was cancelled nothing is served."""
    job.status, job.phase, job.wanted = state.status, state.phase, state.wanted
    if not state.held:
        job.worker, job.lease_until = None, 0
    if state.final:
        job.finished_at = now()
    if state.status == "cancelled":
        session.execute(update(Model).where(Model.job_id == job.id).values(state="deleted"))


def tell(session: Session, job_id: str, lines: Sequence[Told]) -> None:
    """Add lines to a job's story, those left out that it has already."""
    ids = {_id("ftevent", job_id, line.key): line for line in lines}
    known = set(session.scalars(select(Event.id).where(Event.id.in_(ids))))
    for identity, line in ids.items():
        if identity not in known:
            session.add(
                Event(
                    id=identity,
                    job_id=job_id,
                    created_at=now(),
                    level=line.level,
                    type=line.type,
                    message=line.message,
                    data=line.data,
                )
            )


def claim(database: Database, lease: int, statuses: Sequence[Status]) -> Claim | None:
    """Take the oldest job that is due; None if there is none.

    Args:
        database: where the jobs are.
        lease: how long a worker that is not heard of keeps it [s].
        statuses: of the jobs that are taken.
    """
    token = f"worker-{secrets.token_hex(16)}"

    def take() -> str | None:
        due = _due(lease, statuses)
        oldest = select(Job.id).where(due).order_by(Job.created_at, Job.id).limit(1).with_for_update(skip_locked=True)
        taken = (
            update(Job)
            .where(Job.id == oldest.scalar_subquery(), due)
            .values(worker=token, lease_until=now() + lease, attempts=Job.attempts + 1)
            .returning(Job.id)
        )
        with database.writing() as session:
            return session.scalar(taken)

    job_id = patiently(take)
    return None if job_id is None else Claim(database=database, job_id=job_id, token=token, lease=lease)


def _due(lease: int, statuses: Sequence[Status]) -> ColumnElement[bool]:
    free = or_(Job.worker.is_(None), Job.lease_until < now(), Job.lease_until > now() + FAR * lease)
    return Job.status.in_(statuses) & (Job.phase != "approving") & free


@dataclass(kw_only=True)
class Claim:
    """A job that this worker has.

    Args:
        database: where it is.
        job_id: which.
        token: that no other claim has.
        lease: see `claim`.
    """

    database: Database
    job_id: str
    token: str
    lease: int

    def job(self) -> Job:
        """The job as it is now.

        Raises:
            Lost: another worker has it.
        """

        def read() -> Job:
            with self.database.reading() as session:
                return self._mine(session.get(Job, self.job_id))

        return patiently(read)

    def move(
        self,
        happening: Happening,
        lines: Sequence[Told] = (),
        change: Callable[[Session, Job], None] = lambda session, job: None,
    ) -> State:
        """Let something happen to the job, all of it in one transaction.

        Args:
            happening: see `life`.
            lines: added to its story.
            change: of its other columns, and what else belongs to it.

        Returns:
            Where it is now.

        Raises:
            Interrupted: somebody wants it cancelled, and nothing else is to happen to it any more.
            Lost: another worker has it.
            NotNow: it cannot happen to a job that is where it is.
        """

        def write() -> State:
            with self._writing() as (session, job):
                if job.wanted == "cancel" and happening != "stopped":
                    raise Interrupted
                state = after(state_of(job), happening)
                change(session, job)
                tell(session, job.id, lines)
                place(session, job, state)
                job.attempts = 0
                return state

        return patiently(write)

    def note(
        self,
        lines: Sequence[Told] = (),
        checkpoints: Sequence[Kept] = (),
        change: Callable[[Session, Job], None] = lambda session, job: None,
    ) -> None:
        """Write down what has happened within a phase.

        Args:
            lines: added to the job's story.
            checkpoints: added to its checkpoints.
            change: of its other columns.

        Raises:
            Lost: another worker has it.
        """

        def write() -> None:
            with self._writing() as (session, job):
                tell(session, job.id, lines)
                change(session, job)
                for kept in checkpoints:
                    identity = _id("ftckpt", job.id, str(kept.step))
                    if session.get(Checkpoint, identity) is None:
                        session.add(
                            Checkpoint(
                                id=identity, job_id=job.id, created_at=now(), step=kept.step, metrics=kept.metrics
                            )
                        )

        patiently(write)

    def leave(self) -> None:
        """Let the next worker have the job at once, as it is: what runs for it goes on."""

        def write() -> None:
            with self._writing() as (_, job):
                job.lease_until = 0
                job.attempts -= 1

        patiently(write)

    def release(self) -> None:
        """Give the job back as it is: nothing runs for it."""

        def write() -> None:
            with self._writing() as (_, job):
                job.worker, job.lease_until = None, 0
                job.attempts -= 1

        patiently(write)

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Keep the lease from a thread of its own while the block runs."""
        over = threading.Event()
        thread = threading.Thread(target=self._beat, args=(over,), name=f"heartbeat of {self.job_id}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _beat(self, over: threading.Event) -> None:
        while not over.wait(self.lease / 3):
            kept = (
                update(Job)
                .where(Job.id == self.job_id, Job.worker == self.token)
                .values(lease_until=now() + self.lease)
            )
            try:
                with self.database.writing() as session:
                    session.execute(kept)
            except OperationalError:
                continue  # locked or away: the next beat may come through before the lease ends

    @contextmanager
    def _writing(self) -> Iterator[tuple[Session, Job]]:
        with self.database.writing() as session:
            job = self._mine(session.get(Job, self.job_id, with_for_update=True))
            yield session, job

    def _mine(self, job: Job | None) -> Job:
        if job is None or job.worker != self.token:
            raise Lost(f"{self.job_id} is with another worker")
        return job


def patiently(call: Callable[[], T]) -> T:
    """Call again while the database is locked or away, a few times.

    Raises:
        OperationalError: it still is.
    """
    for attempt in range(PATIENCE):
        try:
            return call()
        except OperationalError:
            if attempt == PATIENCE - 1:
                raise
            time.sleep(0.2 * 2**attempt)
    raise AssertionError("unreachable")


def _id(kind: str, job_id: str, key: str) -> str:
    """The name of a thing of a job: who cannot guess the job's cannot guess it; telling it twice changes nothing."""
    return f"{kind}-{hashlib.sha256(f'{job_id} {kind} {key}'.encode()).hexdigest()[:24]}"
