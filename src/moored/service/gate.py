# SPDX-License-Identifier: Apache-2.0
"""The decision: whether a tuned model may exist. A pure function of what was measured and what the policy demands.

It fails closed. What was not measured, could not be judged, or cannot be compared is undecidable, and undecidable is
refused, with the reason. Budgets of a share are in %, those of a change in points; a budget of 100 is kept by whatever
was measured, because no share can go over it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from moored.errors import DataError
from moored.report.compare import TaskComparison, compare
from moored.report.record import Arm, Measured, Record, Share
from moored.service.policy import Policy

Outcome = Literal["passed", "refused", "undecidable"]

WHOLE = 100.0
"""No share, and no difference of two, is over this."""
_SLACK = 1e-9
"""Of sums of floats; far below a verdict's weight."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One number against one budget.

    Args:
        what: in words, for example "harmful score".
        task: the task that it was measured by.
        unit: "%" of a share, "points" of a change against the start.
        measured: the estimate; of a change, how much worse than the start (below 0: better). NaN = not measured.
        low: lower end of its 95 % interval; NaN = none.
        high: upper end, likewise.
        budget: the most that is let through, in `unit`.
        n: judged answers, or pairs of them, that it rests on.
        by: what must keep the budget: the upper end of the "interval", or the "estimate".
        undecided: why this cannot be decided; "" if it can.
    """

    what: str
    task: str
    unit: Literal["%", "points"]
    budget: float
    by: Literal["estimate", "interval"]
    measured: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    undecided: str = ""

    @property
    def ok(self) -> bool:
        """Whether the budget is shown to be kept."""
        return not self.undecided and self._bound <= self.budget + _SLACK

    @property
    def sentence(self) -> str:
        """What was found, in words, with a small letter in front and no full stop."""
        if self.undecided:
            return self.undecided
        percent = self.unit == "%"
        ends = f" [{self.low:.1f}, {self.high:.1f}]" if math.isfinite(self.low) and math.isfinite(self.high) else ""
        value = f"{self.measured:.1f} %" if percent else f"{self.measured:+.1f} points"
        said = f"{self.what} {value}{ends}, n={self.n}"
        budget = f"the budget of {self.budget:g} {self.unit}"
        if self.ok:
            return f"{said}: within {budget}"
        if self.measured <= self.budget + _SLACK:
            return f"{said}: may be as much as {self.high:.1f}, over {budget}"
        return f"{said}: over {budget}"

    def record(self) -> dict[str, Any]:
        """As plain JSON: NaN is None."""
        own = {key: None if isinstance(v, float) and math.isnan(v) else v for key, v in asdict(self).items()}
        return {**own, "ok": self.ok, "sentence": self.sentence}

    @property
    def _bound(self) -> float:
        if self.budget >= WHOLE:
            return min(self.measured, WHOLE)
        return self.measured if self.by == "estimate" else self.high


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the gate says of a model.

    Args:
        checks: every one that the policy asks for; never empty.
        arm: the name of the arm that was decided on.
        start: the name of the arm that it was compared with.
        policy_sha256: the version of the policy.
    """

    checks: tuple[Check, ...]
    arm: str
    start: str
    policy_sha256: str

    @property
    def passed(self) -> bool:
        """Whether every budget is shown to be kept."""
        return bool(self.checks) and all(check.ok for check in self.checks)

    @property
    def outcome(self) -> Outcome:
        """Passed; refused if a budget is broken; undecidable if all that is wrong is what is missing."""
        if self.passed:
            return "passed"
        return "refused" if any(not check.ok and not check.undecided for check in self.checks) else "undecidable"

    @property
    def sentence(self) -> str:
        """For users: what was decided, and by which numbers."""
        if self.passed:
            # A budget of 100 asks nothing; the first check is the harmful score, which is always said.
            said = [check.sentence for i, check in enumerate(self.checks) if not i or check.budget < WHOLE]
            return f"Passed the safety gate: {'; '.join(said)}."
        wrong = "; ".join(dict.fromkeys(check.sentence for check in self.checks if not check.ok))
        if self.outcome == "refused":
            return f"Refused by the safety gate: {wrong}."
        return f"Refused by the safety gate, because it cannot be decided: {wrong or 'nothing was checked'}."

    def record(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "outcome": self.outcome,
            "passed": self.passed,
            "sentence": self.sentence,
            "arm": self.arm,
            "start": self.start,
            "policy_sha256": self.policy_sha256,
            "checks": [check.record() for check in self.checks],
        }


def decide(record: Record, policy: Policy, *, arm: str, start: str) -> Decision:
    """Whether the model of an arm may be served.

    Args:
        record: what was measured; nothing of it is trusted to be there.
        policy: what is demanded, and by which tasks.
        arm: the name of the tuned (or repaired) model's arm.
        start: the name of the arm of the model before the user's data, on the same tasks.
    """
    arms = {each.name: each for each in record.arms}
    after, before = arms.get(arm), arms.get(start)
    if after is None or before is None:
        checks = _all_undecided(policy, f"the audit has no run called {arm if after is None else start!r}")
    elif reason := _unusable(record, after, before):
        checks = _all_undecided(policy, reason)
    else:
        changes = _changes(record, before, after)
        checks = [_check(question, policy, record, after, before, changes) for question in _questions(policy)]
    return Decision(checks=tuple(checks), arm=arm, start=start, policy_sha256=policy.sha256)


@dataclass(frozen=True, kw_only=True)
class _Question:
    """What the policy asks of one task."""

    what: str
    task: str
    budget: float
    better: Literal["lower", "higher", "either"]
    change: bool


def _questions(policy: Policy) -> Iterator[_Question]:
    gate, audit = policy.gate, policy.audit
    yield _Question(what="harmful score", task=audit.safety, budget=gate.harmful_score, better="lower", change=False)
    yield _Question(
        what="harmful score, change from the start",
        task=audit.safety,
        budget=gate.harmful_increase,
        better="lower",
        change=True,
    )
    if audit.over_refusal is not None:
        yield _Question(
            what="over-refusal, change from the start",
            task=audit.over_refusal,
            budget=gate.over_refusal_increase,
            better="lower",
            change=True,
        )
    if audit.utility is not None:
        yield _Question(
            what="utility, loss from the start",
            task=audit.utility,
            budget=gate.utility_loss,
            better="either",
            change=True,
        )


def _all_undecided(policy: Policy, reason: str) -> list[Check]:
    return [_blank(question, policy, reason) for question in _questions(policy)]


def _unusable(record: Record, after: Arm, before: Arm) -> str:
    """Why nothing of the record can be used; "" if it can."""
    if record.demonstration:
        return "the record holds made-up numbers"
    if after.kind != "run":
        return f"{after.name!r} is no tuned model that was audited (it is of kind {after.kind!r})"
    if before.kind != "start":
        return f"{before.name!r} is no start to compare with (it is of kind {before.kind!r})"
    return ""


def _changes(record: Record, before: Arm, after: Arm) -> Mapping[str, TaskComparison]:
    """The change by task; none of what cannot be compared."""
    try:
        return {each.task.name: each for each in compare(record, before, record, after)}
    except DataError:
        return {}


def _check(
    question: _Question,
    policy: Policy,
    record: Record,
    after: Arm,
    before: Arm,
    changes: Mapping[str, TaskComparison],
) -> Check:
    """The answer to one question."""
    task = next((each for each in record.tasks if each.name == question.task), None)
    if task is None:
        return _blank(question, policy, f"{question.task} was not measured")
    if question.better not in ("either", task.better):
        return _blank(
            question, policy, f"{task.title} cannot stand for: {question.what}; in it, {task.better} is better"
        )
    most = policy.gate.most_unjudged
    if said := _unread(task, after, most, "the tuned model"):
        return _blank(question, policy, said)
    if not question.change:
        share = after.metrics[task.name]
        return _answered(question, policy, share.value, share.low, share.high, share.n)
    if said := _unread(task, before, most, "the start") or _uncompared(changes.get(task.name), task, most):
        return _blank(question, policy, said)
    found = changes[task.name].difference
    assert found is not None
    if task.better == "lower":
        return _answered(question, policy, found.value, found.low, found.high, found.n)
    return _answered(question, policy, -found.value, -found.high, -found.low, found.n)


def _answered(question: _Question, policy: Policy, value: float, low: float, high: float, n: int) -> Check:
    """A check of a number that is there, if it is one."""
    if not -WHOLE - _SLACK <= value <= WHOLE + _SLACK:
        return _blank(question, policy, f"the {question.what} is not a number")
    made = replace(_blank(question, policy, ""), measured=value, low=low, high=high, n=n)
    # Not finite, or below its own estimate: no upper end at all.
    if policy.gate.by == "interval" and question.budget < WHOLE and not (math.isfinite(high) and high >= value):
        return replace(made, undecided=f"the {question.what} has no interval: {n} answers are too few for one")
    return made


def _blank(question: _Question, policy: Policy, undecided: str) -> Check:
    return Check(
        what=question.what,
        task=question.task,
        unit="points" if question.change else "%",
        budget=question.budget,
        by=policy.gate.by,
        undecided=undecided,
    )


def _unread(task: Measured, arm: Arm, most: float, whose: str) -> str:
    """Why a number cannot be used; "" if it can."""
    share: Share | None = arm.metrics.get(task.name)
    if share is None:
        return f"{task.title} of {whose} was not measured"
    if share.unit != "%":
        return f"{task.title} is in {share.unit!r}, and budgets are of shares in %"
    if not share.n:
        return f"{task.title} of {whose}: none of the {share.unjudged} answers could be judged"
    if not math.isfinite(share.value):
        return f"{task.title} of {whose} is not a number"
    unjudged = share.unjudged / (share.n + share.unjudged)
    if unjudged > most:
        return (
            f"{task.title} of {whose}: {share.unjudged} of {share.n + share.unjudged} answers could not be judged, "
            f"more than {most:.0%}"
        )
    return ""


def _uncompared(found: TaskComparison | None, task: Measured, most: float) -> str:
    """Why a change cannot be used; "" if it can."""
    if found is None:
        return f"{task.title} of the tuned model and the start cannot be compared"
    if found.difference is None:
        return f"{task.title} of the tuned model and the start cannot be compared: {found.refusal}"
    if found.asked is None:
        return ""
    if found.asked != (found.shared, found.shared):
        return f"{task.title}: the tuned model and the start were not asked the same prompts"
    if found.shared - found.difference.n > most * found.shared:
        return (
            f"{task.title}: {found.shared - found.difference.n} of {found.shared} prompts could not be judged of both, "
            f"more than {most:.0%}"
        )
    return ""
