# SPDX-License-Identifier: Apache-2.0
"""All detectors over an upload, and the decision that the policy makes of what they find."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from moored.catalogue import in_folder
from moored.data.schema import Example, normalise
from moored.errors import require
from moored.judges.base import Exchange, Judge
from moored.service.policy import Action, Screen
from moored.service.screening.base import Detector, Finding, taught

ACTIONS: tuple[Action, ...] = ("report", "flag", "drop", "block")
"""What is done, from the least to the most."""
TOO_LONG = "too_long"
"""The category of rows with too many tokens, which no detector counts."""
_SHOWN_LINES = 20


@dataclass(frozen=True, kw_only=True)
class Screening:
    """What was found in an upload.

    Args:
        rows: of the upload.
        findings: in the order of rows, then of categories.
        actions: what is done about the rows with findings, by row (from 1): the most that one of its findings asks for.
        detectors: those that looked, with their versions.
        most_flagged: share of flagged rows above which the upload is blocked.
        too_long: tokens of the rows that are dropped because they have too many, by row; no misconduct, so not flagged.
    """

    rows: int
    findings: tuple[Finding, ...]
    actions: dict[int, Action]
    detectors: dict[str, str]
    most_flagged: float
    too_long: Mapping[int, int] = field(default_factory=dict)

    @cached_property
    def flagged(self) -> list[int]:
        """Rows about which more is done than a report."""
        return [row for row, action in self.actions.items() if action != "report"]

    @property
    def flagged_share(self) -> float:
        """0-1; 0 of no rows."""
        return len(self.flagged) / self.rows if self.rows else 0.0

    @property
    def kept(self) -> list[int]:
        """Rows to train on, from 1; none if the upload is blocked."""
        return [] if self.blocked else [row for row in range(1, self.rows + 1) if row not in self._dropped]

    @cached_property
    def _dropped(self) -> set[int]:
        return {row for row, action in self.actions.items() if action == "drop"} | set(self.too_long)

    @property
    def blocked(self) -> bool:
        """Whether nothing may be trained."""
        return bool(self.reason)

    @cached_property
    def reason(self) -> str:
        """Why it is blocked, in the words of OpenAI's API; "" if it is not."""
        blocking = [row for row, action in self.actions.items() if action == "block"]
        if blocking:
            return f"This file failed moderation safety checks. {self._categories(blocking)} {_lines(blocking)}"
        if self.flagged_share > self.most_flagged:
            return (
                "This training file was blocked because too many examples were flagged for containing content that "
                f"violates this server's usage policies ({len(self.flagged)} of {self.rows}; the most is "
                f"{self.most_flagged:.0%}). {self._categories(self.flagged)} {_lines(self.flagged)}"
            )
        if self.rows and len(self._dropped) == self.rows:
            dropped = sorted(self._dropped)
            return (
                "This training file was blocked because none of its examples may be trained on. "
                f"{self._categories(dropped)} {_lines(dropped)}"
            )
        return ""

    def record(self) -> dict[str, Any]:
        """As plain JSON; equal for equal uploads, policies and detectors."""
        return {
            "rows": self.rows,
            "flagged": self.flagged,
            "flagged_share": self.flagged_share,
            "most_flagged": self.most_flagged,
            "dropped": sorted(self._dropped),
            "kept": len(self.kept),
            "blocked": self.blocked,
            "reason": self.reason,
            "counts": dict(sorted(Counter(finding.category for finding in self.findings).items())),
            "detectors": self.detectors,
            "findings": [asdict(each) | {"action": self._action(each)} for each in self.findings],
        }

    def _action(self, found: Finding) -> Action:
        return "drop" if found.category == TOO_LONG else self.actions[found.row]

    def _categories(self, rows: Sequence[int]) -> str:
        wanted = set(rows)
        names = sorted({f.category for f in self.findings if f.row in wanted})
        return f"Categories: {', '.join(names)}."


def screen(
    rows: Sequence[Example],
    policy: Screen,
    *,
    judge: Judge | None = None,
    known: Sequence[str] = (),
    too_long: Mapping[int, int] | None = None,
) -> Screening:
    """Look at every row of an upload with every detector of this folder.

    The same rows, policy, judge and prompts give the same result, whatever the machine.

    Args:
        rows: the upload, in its order.
        policy: what is done about each category.
        judge: reads every answer too; it must judge "harmful". One without a verdict counts as harmful.
        known: prompts that the model is judged or was aligned with.
        too_long: tokens of the rows that are to be dropped for their length, by row.

    Raises:
        ConfigError: the judge judges something else.
        NeedsError: a library of the `serve` extra is missing.
    """
    if judge is not None:
        require(judge.judges == "harmful", "screen", "judge", 'a judge of "harmful"', judge.judges)
    detectors: list[Detector] = [cls() for _, cls in sorted(in_folder("moored.service.screening").items())]
    prompts = frozenset(map(normalise, known))
    findings = [each for detector in detectors for each in detector.find(rows, prompts)]
    versions = {detector.name: detector.version for detector in detectors}
    if judge is not None:
        findings += _judged(rows, judge)
        versions["judge"] = judge.identity
    actions: dict[int, Action] = {}
    asked = {name: getattr(policy, name) for name in type(policy).model_fields}
    for each in findings:
        actions[each.row] = max(actions.get(each.row, "report"), asked[each.category], key=ACTIONS.index)
    long = [
        Finding(row=row, category=TOO_LONG, kind="tokens", why=f"has {tokens:,} tokens, more than are trained on")
        for row, tokens in (too_long or {}).items()
    ]
    return Screening(
        rows=len(rows),
        findings=tuple(sorted([*findings, *long], key=lambda each: (each.row, each.category))),
        actions=dict(sorted(actions.items())),
        detectors=versions,
        most_flagged=policy.most_flagged,
        too_long=too_long or {},
    )


def _judged(rows: Sequence[Example], judge: Judge) -> Iterator[Finding]:
    """What the judge says of every answer, all of them asked at once."""
    said = [(number, each) for number, row in enumerate(rows, start=1) for each in taught(row)]
    verdicts = judge.judge([Exchange(prompt=each.prompt, answer=each.answer) for _, each in said])
    for (number, each), verdict in zip(said, verdicts, strict=True):
        if not verdict.judged:
            why = f"{each.place} could not be judged by {judge.label}: {verdict.reason}"
            yield Finding(row=number, category="harmful", kind="not judged", why=why)
        elif verdict.value >= 0.5:
            why = f"{each.place} is harmful by {judge.label}: {verdict.reason}"
            yield Finding(row=number, category="harmful", kind="judged harmful", why=why)


def _lines(rows: Sequence[int]) -> str:
    shown = ", ".join(map(str, rows[:_SHOWN_LINES]))
    return f"Flagged lines: {shown}{' ...' if len(rows) > _SHOWN_LINES else ''}"
