# SPDX-License-Identifier: Apache-2.0
"""The tables of the service, and short sessions on them: SQLite by default, PostgreSQL by URL.

::

    Project ──┬── Key            hashed; `role` says what it may do
              ├── File ── bytes in `blobs/`
              ├── Upload ── Part
              ├── Job ──┬── Event
              │         └── Checkpoint
              └── Model          what passed its gate, bound to the hash of its bytes
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from pydantic_core import from_json
from sqlalchemy import (
    JSON,
    BigInteger,
    Connection,
    ForeignKey,
    Index,
    Integer,
    Label,
    String,
    Text,
    create_engine,
    event,
    inspect,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

Role = Literal["user", "operator", "admin"]
"""A user works in a project; an operator also approves and overrides; an admin also makes projects and keys."""

THREADS = 40
"""Threads of a server that ask at a time. Each keeps its connection: opening one costs more than a query."""

Sequence64 = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up only a plain INTEGER


class Base(DeclarativeBase):
    """Base of the tables."""

    type_annotation_map = {dict[str, Any]: JSON, list[str]: JSON}


class Project(Base):
    """A tenant."""

    __tablename__ = "projects"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(128), unique=True)
    created_at: Mapped[int] = mapped_column(BigInteger)
    limits: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """What differs from the policy's limits."""


class Key(Base):
    """An API key: its hash, and the first letters to know it by."""

    __tablename__ = "keys"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    name: Mapped[str] = mapped_column(String(128), default="")
    role: Mapped[str] = mapped_column(String(16), default="user")
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    shown: Mapped[str] = mapped_column(String(32))
    created_at: Mapped[int] = mapped_column(BigInteger)
    revoked_at: Mapped[int | None] = mapped_column(BigInteger)


class File(Base):
    """A file of a project; its bytes are the blob of its hash."""

    __tablename__ = "files"
    __table_args__ = (Index("files_newest", "project_id", "created_at", "id"),)
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    filename: Mapped[str] = mapped_column(Text)
    purpose: Mapped[str] = mapped_column(String(32))
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    created_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int | None] = mapped_column(BigInteger, index=True)
    status: Mapped[str] = mapped_column(String(16), default="processed")
    status_details: Mapped[str | None] = mapped_column(Text)


class Upload(Base):
    """A large file on its way, in parts."""

    __tablename__ = "uploads"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    filename: Mapped[str] = mapped_column(Text)
    purpose: Mapped[str] = mapped_column(String(32))
    bytes: Mapped[int] = mapped_column(BigInteger)
    mime_type: Mapped[str] = mapped_column(String(128))
    created_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int] = mapped_column(BigInteger, index=True)
    status: Mapped[str] = mapped_column(String(16), default="pending")
    file_id: Mapped[str | None] = mapped_column(String(64))
    file_expires_after: Mapped[int | None] = mapped_column(BigInteger)


class Part(Base):
    """A part of an upload."""

    __tablename__ = "parts"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id"), index=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[int] = mapped_column(BigInteger)


class Job(Base):
    """A fine-tuning job: what was asked, where it is, and who is at it."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index("jobs_newest", "project_id", "created_at", "id"),
        Index("jobs_due", "status", "lease_until"),
    )
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    created_at: Mapped[int] = mapped_column(BigInteger)
    # What was asked.
    model: Mapped[str] = mapped_column(String(256))
    training_file: Mapped[str] = mapped_column(String(64))
    validation_file: Mapped[str | None] = mapped_column(String(64))
    suffix: Mapped[str | None] = mapped_column(String(64))
    seed: Mapped[int] = mapped_column(BigInteger)
    method: Mapped[dict[str, Any]]
    given_metadata: Mapped[dict[str, Any]] = mapped_column("metadata", default=dict)
    integrations: Mapped[dict[str, Any]] = mapped_column(default=dict)
    # Under which rules: the policy as it was when the job was made.
    policy: Mapped[dict[str, Any]]
    policy_sha256: Mapped[str] = mapped_column(String(64))
    # Where it is.
    status: Mapped[str] = mapped_column(String(24), default="validating_files")
    phase: Mapped[str] = mapped_column(String(24), default="checking")
    wanted: Mapped[str] = mapped_column(String(16), default="")
    """"cancel", "pause" or ""."""
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    finished_at: Mapped[int | None] = mapped_column(BigInteger)
    estimated_finish: Mapped[int | None] = mapped_column(BigInteger)
    trained_tokens: Mapped[int | None] = mapped_column(BigInteger)
    hyperparameters: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """As they came out of "auto"."""
    fine_tuned_model: Mapped[str | None] = mapped_column(String(256))
    result_files: Mapped[list[str]] = mapped_column(default=list)
    safety: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """What `x_safety` shows: what the screen found, what the audit measured, what the gate said."""
    # Who is at it.
    worker: Mapped[str | None] = mapped_column(String(64))
    lease_until: Mapped[int] = mapped_column(BigInteger, default=0)
    attempts: Mapped[int] = mapped_column(Integer, default=0)


class Event(Base):
    """One line of a job's story."""

    __tablename__ = "events"
    __table_args__ = (Index("events_of_job", "job_id", "number"),)
    number: Mapped[int] = mapped_column(Sequence64, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    created_at: Mapped[int] = mapped_column(BigInteger)
    level: Mapped[str] = mapped_column(String(8), default="info")
    type: Mapped[str] = mapped_column(String(16), default="message")
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any]] = mapped_column(default=dict)


class Checkpoint(Base):
    """A step of a job's training at which its numbers were kept."""

    __tablename__ = "checkpoints"
    __table_args__ = (Index("checkpoints_of_job", "job_id", "step"),)
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    created_at: Mapped[int] = mapped_column(BigInteger)
    step: Mapped[int] = mapped_column(Integer)
    metrics: Mapped[dict[str, Any]] = mapped_column(default=dict)


class Model(Base):
    """Tuned weights. Only `state` "passed" is ever listed or loaded, and only bytes that hash to `sha256`."""

    __tablename__ = "models"
    id: Mapped[str] = mapped_column(String(256), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), unique=True)
    base: Mapped[str] = mapped_column(String(256))
    """The name of the model that it was tuned from, in the policy of its job."""
    start: Mapped[str] = mapped_column(Text)
    """The folder or hub id of the weights under the adapter; in the home if it is a relative path."""
    folder: Mapped[str] = mapped_column(Text)
    """Of the adapter, in the home."""
    sha256: Mapped[str] = mapped_column(String(64))
    """Over every file of `folder` and of `start`; see `registry.digest`."""
    state: Mapped[str] = mapped_column(String(16))
    """"waiting" (for a person), "passed", "refused" or "deleted"."""
    created_at: Mapped[int] = mapped_column(BigInteger)


def columns_of(table: type[Base], *, without: Collection[str] = ()) -> tuple[Label[Any], ...]:
    """The columns of a table under their names in Python, for a statement whose rows look like the table's objects.

    Args:
        table: one of the classes above.
        without: those that are not read.
    """
    names = (each.key for each in inspect(table).column_attrs if each.key not in without)
    return tuple(getattr(table, name).label(name) for name in names)


class Database:
    """A database, by URL.

    Args:
        url: of SQLAlchemy, for example "sqlite:////srv/moored/moored.sqlite" or "postgresql+psycopg://...".
    """

    def __init__(self, url: str):
        waits = {"connect_args": {"timeout": 30}} if url.startswith("sqlite") else {"pool_pre_ping": True}
        self.engine = create_engine(url, pool_size=THREADS, max_overflow=10, json_deserializer=_of_json, **waits)
        if self.engine.dialect.name == "sqlite":
            event.listen(self.engine, "connect", _as_a_server)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A short session that writes nothing."""
        with self._sessions() as session:
            yield session

    def looking(self) -> Connection:
        """A connection, in a `with`, for statements that were built once, with `bindparam`.

        They give rows. Objects, a session and a statement that is built anew cost ten times as much as the query.
        """
        return self.engine.connect()

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """One transaction: all of it when the block ends, nothing of it if it raises."""
        with self._sessions.begin() as session:
            if self.engine.dialect.name == "sqlite":
                # Two readers that both turn writers would deadlock; the lock is taken at once instead.
                session.connection().exec_driver_sql("BEGIN IMMEDIATE")
            yield session

    def close(self) -> None:
        """Let go of all connections."""
        self.engine.dispose()


def _of_json(text: str | bytes) -> Any:
    """What a column of JSON holds; a list of jobs has a hundred of them, and `json` takes five times as long."""
    try:
        return from_json(text)
    except ValueError:
        return json.loads(text)  # which takes a lone surrogate, as it writes one


def _as_a_server(connection: Any, _: Any) -> None:
    """Readers beside one writer, foreign keys kept, and no transaction but those we begin."""
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000"):
        connection.execute(f"PRAGMA {pragma}")
