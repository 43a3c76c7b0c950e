# SPDX-License-Identifier: Apache-2.0
"""The real parts that a worker asks. Each is imported when it is needed, so that a worker says what is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from moored.data.load import load_rows
from moored.data.schema import Example, Row
from moored.service import files
from moored.service.blobs import Blobs
from moored.service.database import Database, File, Job, Model
from moored.service.folder import JobFolder
from moored.service.launchers.base import Launcher
from moored.service.launchers.named import launcher_named
from moored.service.policy import Limits, Policy
from moored.service.seams import Complaint, Outcome, Screening, Seams
from moored.service.settings import ServerSettings
from moored.service.starts import SEED
from moored.study.methods import build
from moored.study.recipe import Data


def launcher_of(settings: ServerSettings) -> Launcher:
    """Where training runs; nothing is asked of it yet.

    Raises:
        ConfigError: an option that it does not have.
    """
    return launcher_named(
        settings.launcher, settings.launcher_options, slots=settings.slots, folder=settings.home / "slots"
    )


def seams_of(settings: ServerSettings, database: Database) -> Seams:
    """The parts of a server.

    Args:
        settings: of it.
        database: of it.
    """
    blobs = Blobs(settings.blobs)
    return Seams(
        bytes_of=partial(_bytes_of, blobs),
        check=_check,
        rows=_rows,
        screen=_screened,
        decide=_part("gate").decide,
        beside=_beside,
        publish=partial(_publish, settings, database),
        keep=partial(_keep, blobs),
        card=partial(_card, settings, database),
        log=partial(_log, settings),
    )


def _part(name: str) -> Any:
    return import_module(f"moored.service.{name}")


def _bytes_of(blobs: Blobs, sha256: str) -> Path:
    blobs.open(sha256, verify=True).close()
    return blobs.path(sha256)


def _check(path: Path, *, limits: Limits, method: str, counted_by: str | None = None) -> Sequence[Complaint]:
    tokens = None if counted_by is None else _counter(counted_by)
    complaints: Sequence[Complaint] = _part("dialect").check(
        path, limits=limits, method=method, tokens=tokens, name="Training file"
    )
    return complaints


def _counter(model: str) -> Callable[[Row], int]:
    """Counts the tokens of a row as a model reads it.

    Raises:
        MooredError: there is no such model here.
    """
    from moored.data.chat import length
    from moored.hf.loaders import load_tokenizer

    return partial(length, load_tokenizer(model))


def _too_long(rows: Sequence[Example], policy: Policy, model: str | None) -> dict[int, int]:
    """The tokens of rows that have too many, by row, where the policy drops them."""
    if model is None or policy.screen.too_long != "drop":
        return {}
    count = _counter(policy.models[model].source)
    longest = {
        number: max(map(count, (row,) if isinstance(row, Row) else (row.preferred, row.other)))
        for number, row in enumerate(rows, start=1)
    }
    return {number: tokens for number, tokens in longest.items() if tokens > policy.limits.row_tokens}


def _rows(path: Path) -> list[Example]:
    return list(_part("dialect").read(path, name="the file"))


@dataclass(frozen=True, kw_only=True)
class _Screened:
    """A screening as the pipeline sees it."""

    rows: Sequence[Example]
    blocked: bool
    reason: str
    found: Callable[[], dict[str, Any]]

    def record(self) -> dict[str, Any]:
        """As plain JSON."""
        return self.found()


def _screened(rows: Sequence[Example], policy: Policy, model: str | None) -> Screening:
    judge = policy.screen.judge
    made = None if judge is None else build("judges", judge.name, judge.parameters)
    found = _part("screening.screening").screen(
        rows, policy.screen, judge=made, known=_known(policy), too_long=_too_long(rows, policy, model)
    )
    return _Screened(
        rows=[rows[number - 1] for number in found.kept],
        blocked=found.blocked,
        reason=found.reason or _summary(found.record()),
        found=found.record,
    )


def _known(policy: Policy) -> list[str]:
    """The prompts that models are judged by and were aligned with."""
    asked = [row for name, how in policy.audit.tasks.items() for row in build("tasks", name, how).rows()]
    offered = [each.align for each in policy.models.values() if each.align is not None]
    aligned = [row for align in offered for data in align.data for row in _taken(data)]
    return [row.question for row in (*asked, *aligned)]


def _taken(data: Data) -> list[Row]:
    """What the provider's alignment takes of a data set."""
    from moored.study.plan import drawn

    rows: list[Row] = drawn(data, load_rows(data.data, source="alignment"), SEED)
    return rows


def _summary(record: Mapping[str, Any]) -> str:
    """What was found in words; "" if nothing was."""
    rows = Counter(category for _, category in {(each["row"], each["category"]) for each in record.get("findings", [])})
    if not rows:
        return ""
    said = ", ".join(f"{category} in {count} row{'s' * (count > 1)}" for category, count in sorted(rows.items()))
    flagged = record.get("flagged", [])
    more = f" and {len(flagged) - 20} more" if len(flagged) > 20 else ""
    lines = f". Flagged lines: {', '.join(map(str, flagged[:20]))}{more}" if flagged else ""
    return f"The screen found: {said}{lines}"


def _beside(outcome: Outcome) -> dict[str, str]:
    return {"README.md": _part("report_card").model_card(outcome.job, _measured(outcome))}


def _measured(outcome: Outcome) -> Any:
    tuned = "tuned" if outcome.arm != "tuned" else ""
    return _part("report_card").Measured(record=outcome.record, decision=outcome.decision, tuned=tuned)


def _publish(settings: ServerSettings, database: Database, outcome: Outcome, beside: Mapping[str, str]) -> Model:
    registry = _part("registry")
    model: Model = registry.publish(
        database, settings, outcome.job, outcome.weights, outcome.under, outcome.decision, texts=beside
    )
    return model


def _keep(blobs: Blobs, session: Session, project_id: str, name: str, data: bytes) -> str:
    with blobs.incoming(len(data)) as coming:
        coming.write(data)
        coming.settle()
        return files.promise(
            session, coming, project_id=project_id, filename=name, purpose="fine-tune-results", lifetime=None
        ).id


def _card(settings: ServerSettings, database: Database, job: Job, outcome: Outcome | None, model: Model | None) -> None:
    report_card = _part("report_card")
    with database.reading() as session:
        file = session.scalar(select(File).where(File.id == job.training_file))
    found = JobFolder(settings.job(job.id)).read_json("screening.json") or {}
    upload = report_card.Upload.screened(job.training_file, file.sha256 if file is not None else "", found)
    measured = None if outcome is None else _measured(outcome)
    drawn = report_card.draw_up(job, upload=upload, measured=measured, model=model)
    report_card.publish(settings, drawn)


def _log(settings: ServerSettings, action: str, job_id: str, details: Mapping[str, Any]) -> None:
    _part("audit_log").append(settings.home, "server", action, job_id, details)
