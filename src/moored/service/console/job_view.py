# SPDX-License-Identifier: Apache-2.0
"""A job as people read it: where it is, what was measured, what was decided. Pure functions of rows and records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from markupsafe import Markup
from sqlalchemy import Row

from moored.report import plot
from moored.report.record import Arm, Record
from moored.report.table import estimate
from moored.service.card_page import COLUMNS, check_cells, standing
from moored.service.claims import state_of
from moored.service.console import curves
from moored.service.database import Event, Job
from moored.service.job_recipe import REPAIRED, TUNED, start_arm
from moored.service.jobs import Wish
from moored.service.life import FINAL, NotNow, after
from moored.service.policy import Policy

Tone = Literal["good", "bad", "amber", "neutral"]

_PHASES = {
    "checking": "Check the files",
    "screening": "Screen the rows",
    "waiting": "Wait for a slot",
    "tuning": "Tune under the defence",
    "auditing": "Audit",
    "repairing": "Repair",
    "deciding": "Decide",
    "approving": "A person approves",
}
_STATUS = {
    "validating_files": "Checking its files",
    "queued": "Waiting for a slot",
    "running": "Running",
    "paused": "Paused",
    "succeeded": "Succeeded",
    "failed": "Failed",
    "cancelled": "Cancelled",
}
_DOING = {
    "checking": "Checking the files",
    "screening": "Screening the rows",
    "waiting": "Waiting for a slot",
    "tuning": "Tuning",
    "auditing": "Auditing",
    "repairing": "Repairing",
    "deciding": "Deciding",
    "approving": "Waiting for a person's approval",
}
_ARROWS = {"lower": "↓", "higher": "↑"}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Where a job's model stands, in a few words.

    Args:
        words: "" if there is nothing to say yet.
        tone: in which they are said.
    """

    words: str
    tone: Tone


@dataclass(frozen=True, kw_only=True)
class Step:
    """A phase that a job goes through.

    Args:
        title: for people.
        state: "done", "now" or "to come".
    """

    title: str
    state: Literal["done", "now", "to come"]


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What was measured.

    Args:
        heads: of the table.
        rows: of the table: one per task.
        figures: one picture per task.
    """

    heads: list[str]
    rows: list[list[str]]
    figures: list[Markup]


def status(job: Job | Row[Any]) -> str:
    """What happens with a job, in a few words."""
    if job.status in FINAL:
        return _STATUS[job.status]
    if job.wanted:
        return "Stopping" if job.wanted == "cancel" else "Pausing"
    return _STATUS["paused"] if job.status == "paused" else _DOING.get(job.phase, _STATUS[job.status])


def verdict(job: Job | Row[Any]) -> Verdict:
    """What the gate, and then people, said of a job's model."""
    decisions, people = job.safety.get("decision", {}), job.safety.get("people", [])
    decision = decisions.get(REPAIRED) or decisions.get(TUNED)
    over = job.status in FINAL
    if decision is not None and (over or job.phase == "approving"):
        words, tone = standing({"people": people, "decision": decision, "policy": {"rules": job.policy}})
        return Verdict(words=words, tone=tone)
    if decision is not None and not decision["passed"]:
        return Verdict(words="Over budget", tone="amber")
    if over and (job.error or {}).get("code") == "data_screen":
        return Verdict(words="Blocked by the screen", tone="bad")
    if over:
        return Verdict(words="Not audited, not served", tone="neutral")
    return Verdict(words="", tone="neutral")


def steps(job: Job) -> list[Step]:
    """The phases of a job that is not over, in order; none of one that is."""
    if job.status in FINAL:
        return []
    policy = Policy.model_validate(job.policy)
    skipped = set() if policy.repair.repairs else {"repairing"}
    skipped |= set() if policy.gate.approval else {"approving"}
    names = [name for name in _PHASES if name not in skipped]
    at = names.index(job.phase) if job.phase in names else 0
    states: tuple[Literal["done", "now", "to come"], ...] = ("done", "now", "to come")
    return [Step(title=_PHASES[name], state=states[(i >= at) + (i > at)]) for i, name in enumerate(names)]


def offered(job: Job) -> list[Wish]:
    """What its user may want of a job now, and has not said yet."""
    return [wish for wish in get_args(Wish) if wish != job.wanted and _can(job, wish)]


def _can(job: Job, wish: Wish) -> bool:
    try:
        after(state_of(job), wish)
    except NotNow:
        return False
    return True


def curve(events: Sequence[Event]) -> Markup:
    """The loss so far; "" if there is none.

    Args:
        events: of a job, oldest first.
    """
    told = [event.data for event in events if "train_loss" in event.data and "step" in event.data]
    points = [(int(data["step"]), _number(data["train_loss"])) for data in told]
    total = max((int(data.get("total_steps") or 0) for data in told), default=0)
    return Markup(curves.loss(points, total))  # made of numbers by `svg`, which escapes its attributes


def audit(job: Job, record: Record | None) -> Audit | None:
    """What was measured, the start beside what the job made; None if nothing was.

    Args:
        job: whose policy says what the start is.
        record: of its study, if it has one.
    """
    if record is None:
        return None
    names = dict(zip(COLUMNS, (start_arm(Policy.model_validate(job.policy), job.model), TUNED, REPAIRED), strict=True))
    known = {arm.name: arm for arm in record.arms}
    arms: dict[str, Arm] = {column: known[name] for column, name in names.items() if name in known}
    tasks = [task for task in record.tasks if any(task.name in arm.metrics for arm in arms.values())]
    if not tasks:
        return None
    rows = []
    for task in tasks:
        shares = [arm.metrics.get(task.name) for arm in arms.values()]
        unit = next((share.unit for share in shares if share), "%")
        rows.append([f"{task.title} {_ARROWS[task.better]} {unit}", *(estimate(share, n=True) for share in shares)])
    titled = [arm.model_copy(update={"title": COLUMNS[column]}) for column, arm in arms.items()]
    shown = record.model_copy(update={"arms": titled, "expectations": []})
    figures = [Markup(figure) for task in tasks if (figure := plot.intervals(shown, task))]
    return Audit(heads=["Task", *(COLUMNS[column] for column in arms)], rows=rows, figures=figures)


def decisions(job: Job) -> list[dict[str, Any]]:
    """What the gate said, the last time first: title, sentence, rows of checks."""
    found = job.safety.get("decision", {})
    titles = {REPAIRED: "After the repair", TUNED: "As tuned"}
    return [
        {
            "title": title,
            "sentence": found[arm]["sentence"],
            "passed": found[arm]["passed"],
            "checks": [check_cells(check) for check in found[arm]["checks"]],
        }
        for arm, title in titles.items()
        if arm in found
    ]


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
