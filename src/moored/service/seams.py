# SPDX-License-Identifier: Apache-2.0
"""What the pipeline asks of other parts, so that it can be run without them; `wiring.py` gives the real ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from sqlalchemy.orm import Session

from moored.data.schema import Example
from moored.report.record import Record
from moored.service.database import Job, Model
from moored.service.folder import JobFolder
from moored.service.policy import Limits, Policy


@runtime_checkable
class Complaint(Protocol):
    """Something wrong with a file."""

    @property
    def line(self) -> int | None:
        """Where, from 1."""

    @property
    def message(self) -> str:
        """What, for the user."""

    @property
    def code(self) -> str:
        """A word for programs."""


@runtime_checkable
class Screening(Protocol):
    """What a screen found."""

    @property
    def rows(self) -> Sequence[Example]:
        """Those that are kept, in their order."""

    @property
    def blocked(self) -> bool:
        """Whether nothing may be trained."""

    @property
    def reason(self) -> str:
        """Why it is blocked, or what was found; for the user."""

    def record(self) -> dict[str, Any]:
        """As plain JSON."""


@runtime_checkable
class Decision(Protocol):
    """What the gate says."""

    @property
    def passed(self) -> bool:
        """Whether the model may exist."""

    @property
    def sentence(self) -> str:
        """What was decided and why, for the user."""

    def record(self) -> dict[str, Any]:
        """As plain JSON."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """All that is known of a job at its end.

    Args:
        job: as it was when the gate decided.
        policy: that it was made under.
        folder: of the job.
        record: of its study.
        arm: the row of the record that the job ends with.
        start: the row that it is compared with.
        decision: of the gate, on that arm.
        weights: the folder of the model, or of its adapter.
        under: the folder or hub id of the model that it was tuned from.
    """

    job: Job
    policy: Policy
    folder: JobFolder
    record: Record
    arm: str
    start: str
    decision: Decision
    weights: Path
    under: str


@runtime_checkable
class Check(Protocol):
    """Looks for what is wrong with a file."""

    def __call__(
        self, path: Path, *, limits: Limits, method: str, counted_by: str | None = None
    ) -> Sequence[Complaint]:
        """All of it; nothing if it can be trained on. `counted_by`: the model that counts the tokens of rows."""


@runtime_checkable
class Decide(Protocol):
    """The gate."""

    def __call__(self, record: Record, policy: Policy, *, arm: str, start: str) -> Decision:
        """Whether the model of an arm may be served."""


@dataclass(frozen=True, kw_only=True)
class Seams:
    """The other parts.

    Args:
        bytes_of: the bytes with a hash, as a file; raises `FileNotFoundError` or a `MooredError`.
        check: complains of a file.
        rows: reads a file that has nothing wrong with it.
        screen: looks through rows under a policy, for one of its models (None: no tokens are counted).
        decide: the gate.
        beside: what lies beside the weights of an outcome, by file name.
        publish: keeps the weights of an outcome, whatever the gate said, with what lies beside them. Twice is once.
        keep: gives a function that, within a transaction, makes a file of a project of bytes and gives its id.
        card: writes the report card of a job as it will be: with its outcome and its weights, if it has come so far.
        log: adds a line to the audit log: action, job id, details.
    """

    bytes_of: Callable[[str], Path]
    check: Check
    rows: Callable[[Path], Sequence[Example]]
    screen: Callable[[Sequence[Example], Policy, str | None], Screening]
    decide: Decide
    beside: Callable[[Outcome], Mapping[str, str]]
    publish: Callable[[Outcome, Mapping[str, str]], Model]
    keep: Callable[[Session, str, str, bytes], str]
    card: Callable[[Job, Outcome | None, Model | None], None]
    log: Callable[[str, str, Mapping[str, Any]], None]
