# SPDX-License-Identifier: Apache-2.0
"""Two arms of any records, task by task: the difference with its interval, and whether it is noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from moored.errors import DataError, JudgeError
from moored.metrics import difference
from moored.metrics.difference import Difference
from moored.report.record import Arm, Measured, Record, Share

FRACTION = 100.0
"""From shares to %."""


@dataclass(frozen=True, kw_only=True)
class TaskComparison:
    """One task in two arms.

    Args:
        task: the column of the first record.
        first: estimate of the first arm.
        second: estimate of the second arm.
        difference: second minus first, in `unit`, of a perplexity that of its logarithm; None if the two cannot be
            compared.
        better: prompts on which the second does better; None if unpaired.
        worse: prompts on which it does worse.
        asked: prompts asked of the first and of the second; None where the record does not say which.
        shared: prompts asked of both.
        refusal: why the two cannot be compared, "" if they can.
    """

    task: Measured
    first: Share
    second: Share
    difference: Difference | None = None
    better: int | None = None
    worse: int | None = None
    asked: tuple[int, int] | None = None
    shared: int = 0
    refusal: str = ""

    @property
    def unit(self) -> str:
        """Of the estimates; differences of % are points."""
        return self.first.unit

    @property
    def sentence(self) -> str:
        """What the numbers say."""
        if self.difference is None:
            return f"{self.task.title}: not compared, {self.refusal}."
        found = self.difference
        interval = (
            f"[{self._shown(found.low)}, {self._shown(found.high)}]" if math.isfinite(found.low) else "(no interval)"
        )
        if found.noise:
            said = f"{self._amount(found.value, sign='+')}, cannot be told from noise {interval}"
        else:
            good = (found.value < 0) == (self.task.better == "lower")
            side = "lower" if found.value < 0 else "higher"
            size = found.value if self.task.scale == "log" else abs(found.value)
            said = f"{self._amount(size)} {side}, {'better' if good else 'worse'} {interval}"
        changed = "" if self.better is None else f"; better on {self.better} prompts, worse on {self.worse}"
        return f"{self.task.title}: {said}{changed}."

    @property
    def gap(self) -> str:
        """The difference with its interval, in as many digits as fit a table; "" if there is none."""
        found = self.difference
        if found is None:
            return ""
        if self.task.scale == "log":
            return f"× {self._shown(found.value)} [{self._shown(found.low)}, {self._shown(found.high)}]"
        ends = ".0f" if self.unit == "%" else ".3g"
        return f"{self._shown(found.value, '+')} [{found.low:{ends}}, {found.high:{ends}}]"

    def _amount(self, value: float, sign: str = "") -> str:
        """A difference with its unit; of logarithms the ratio."""
        if self.task.scale == "log":
            return f"× {self._shown(value)}"
        return f"{self._shown(value, sign)} {'points' if self.unit == '%' else self.unit}"

    def _shown(self, value: float, sign: str = "") -> str:
        """Tenths of points; what is no share has three digits."""
        if self.task.scale == "log":
            return f"{math.exp(value):.3g}"
        return format(value, f"{sign}.1f" if self.unit == "%" else f"{sign}.3g")

    @property
    def basis(self) -> str:
        """On which prompts, and how the interval was made; "" if nothing is compared."""
        if self.difference is None:
            return ""
        if self.asked is None:
            return f"{self.difference.method}: a record that does not hold the scores of single prompts"
        if self.asked == (self.shared, self.shared):
            return f"{self.difference.method}: the same prompts"
        one, other = self.asked
        return f"{self.difference.method}: the {self.shared} prompts that both were asked, of {one} and {other}"

    def record(self) -> dict[str, Any]:
        """As plain JSON."""
        own = {name: value for name, value in asdict(self).items() if name not in ("task", "first", "second")}
        shares = {"first": self.first.model_dump(mode="json"), "second": self.second.model_dump(mode="json")}
        return {
            "task": self.task.name,
            "unit": self.unit,
            **shares,
            **own,
            "basis": self.basis,
            "sentence": self.sentence,
        }


def compare(first: Record, arm: Arm, second: Record, other: Arm) -> list[TaskComparison]:
    """How `other` differs from `arm`, on every task that both were measured on.

    Where the records hold a score per prompt, the prompts that both were asked are compared one by one
    (`metrics.difference.paired`), and only those. Where they do not, the two shares are compared as independent ones,
    which is wider. Different judges, or different versions of a task, are not compared.

    Args:
        first: the record of `arm`.
        arm: what is compared with.
        second: the record of `other`; may be the same record.
        other: what is compared.

    Raises:
        DataError: there is no task on which they can be compared; says why.
    """
    columns = {task.name: task for task in second.tasks}
    found = [
        _task(task, columns[task.name], arm, other)
        for task in first.tasks
        if task.name in arm.metrics and task.name in other.metrics
    ]
    if not any(each.difference for each in found):
        reasons = "; ".join(each.sentence.rstrip(".") for each in found) or "they have no task in common"
        raise DataError(f"{arm.name!r} and {other.name!r} cannot be compared: {reasons}")
    return found


def pairs(first: Record, arm: str, second: Record, other: str) -> Iterator[tuple[Arm, Arm]]:
    """Which arms to compare.

    Args:
        first: a record.
        arm: the name of one of its arms, or "".
        second: a record.
        other: likewise.

    Returns:
        The two that are named; one that is named with its namesake in the other record (or its only arm); without
        names all namesakes, or the only arms.

    Raises:
        ConfigError: no such arm.
        DataError: nothing says which.
    """
    if first is second and not (arm and other):
        raise DataError(f"one record: name both arms, RECORD:ARM, of {_names(first)}")
    chosen = [first.arm(arm)] if arm else list(first.arms)
    others = [second.arm(other)] if other else list(second.arms)
    if len(chosen) == len(others) == 1:
        yield chosen[0], others[0]
        return
    named = {each.name: each for each in others}
    if arm and len(others) > 1 and arm in named:
        yield chosen[0], named[arm]
    elif other and len(chosen) > 1 and other in {each.name for each in chosen}:
        yield first.arm(other), others[0]
    elif not arm and not other and (both := [each for each in chosen if each.name in named]):
        yield from ((each, named[each.name]) for each in both)
    else:
        raise DataError(
            f"which arms? name them as RECORD:ARM; the first record has {_names(first)}, the second {_names(second)}"
        )


def _task(task: Measured, column: Measured, arm: Arm, other: Arm) -> TaskComparison:
    shares = (arm.metrics[task.name], other.metrics[task.name])
    made = TaskComparison(task=task, first=shares[0], second=shares[1])
    if reason := _unlike(task, column, *shares):
        return replace(made, refusal=reason)
    scores, others = arm.scores.get(task.name, {}), other.scores.get(task.name, {})
    if scores and others:
        return _paired(made, scores, others)
    if task.data != column.data:
        return replace(made, refusal=f"asked of {task.data!r} and of {column.data!r}, prompt by prompt unknown")
    if shares[0].unit != "%":
        return replace(made, refusal="a record without scores per prompt, and no share")
    hits = [share.value / FRACTION * share.n for share in shares]
    found = difference.independent(hits[0], shares[0].n, hits[1], shares[1].n)
    return replace(made, difference=_scaled(found, FRACTION))


def _unlike(task: Measured, column: Measured, share: Share, other: Share) -> str:
    """Why two numbers of one name are not of one kind; "" if they are."""
    if not (share.n and other.n):
        return "one of them could not be judged"
    if share.unit != other.unit:
        return f"in {share.unit!r} and in {other.unit!r}"
    if task.judge != column.judge:
        return f"judged by {task.judge or 'nobody knows whom'!r} and by {column.judge or 'nobody knows whom'!r}"
    if task.version != column.version:
        return f"versions {task.version!r} and {column.version!r} of the task"
    return ""


def _paired(made: TaskComparison, scores: Mapping[str, float], others: Mapping[str, float]) -> TaskComparison:
    shared = [prompt for prompt in scores if prompt in others]
    made = replace(made, asked=(len(scores), len(others)), shared=len(shared))
    if not shared:
        return replace(made, refusal=f"the prompts differ: none of {len(scores)} and {len(others)} is shared")
    one, two = [scores[prompt] for prompt in shared], [others[prompt] for prompt in shared]
    try:
        found = difference.paired(one, two, graded=made.unit != "%")
    except JudgeError:
        return replace(made, refusal=f"none of the {len(shared)} shared prompts was judged in both")
    sign = -1 if made.task.better == "lower" else 1
    gains = [sign * (b - a) for a, b in zip(one, two, strict=True) if not math.isnan(b - a)]
    return replace(
        made,
        difference=_scaled(found, FRACTION if made.unit == "%" else 1.0),
        better=sum(gain > 0 for gain in gains),
        worse=sum(gain < 0 for gain in gains),
    )


def _scaled(found: Difference, by: float) -> Difference:
    return replace(found, value=found.value * by, low=found.low * by, high=found.high * by)


def _names(record: Record) -> str:
    return ", ".join(arm.name for arm in record.arms)
