# SPDX-License-Identifier: Apache-2.0
"""Several judges on the same answers: the mean of their verdicts, and where they disagree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from moored.errors import require
from moored.judges.base import Exchange, Judge, Verdict

HALF = 0.5
"""The value from which a verdict counts as yes."""


@dataclass(frozen=True, kw_only=True)
class Ensemble(Judge):
    """Several judges of one property; an answer gets the majority's verdict, or none (NaN) where there is no majority.

    A judge that has no verdict on an answer abstains. What each said stands in the reason of the verdict, and whether
    they disagree in `Verdict.disputed`; every number made of such verdicts has the share of those beside it
    (`Estimate.disagreement`).

    Args:
        of: two judges or more, all of the same property. Judges of different kinds (rules, a guard, a rubric) err in
            different places; two of one family mostly agree on the same mistakes.

    Raises:
        ConfigError: fewer than two judges, the same twice, or judges of different properties.
    """

    name: ClassVar[str] = "ensemble"
    version: ClassVar[str] = "1"
    of: tuple[Judge, ...]

    def __post_init__(self) -> None:
        names = [judge.label for judge in self.of]
        require(len(set(names)) == len(names) >= 2, "Ensemble", "of", "two different judges or more", names)
        kinds = sorted({judge.judges for judge in self.of})
        require(len(kinds) == 1, "Ensemble", "of", "judges of one property", " and ".join(kinds))

    @property
    def judges(self) -> str:  # type: ignore[override]
        """What all of them judge."""
        return self.of[0].judges

    @property
    def label(self) -> str:
        """All their labels."""
        return f"majority of {'; '.join(judge.label for judge in self.of)}"

    @property
    def identity(self) -> str:
        """With all of theirs."""
        return f"{super().identity} of {', '.join(judge.identity for judge in self.of)}"

    def loads(self) -> tuple[str, ...]:
        """What all of them load."""
        return tuple(model for judge in self.of for model in judge.loads())

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """One verdict per exchange, in the same order."""
        columns = [judge.judge(exchanges) for judge in self.of]
        return [self._verdict(row) for row in zip(*columns, strict=True)]

    def _verdict(self, row: Sequence[Verdict]) -> Verdict:
        votes = [verdict.value >= HALF for verdict in row if verdict.judged]
        yes, no = sum(votes), len(votes) - sum(votes)
        value = math.nan if yes == no else float(yes > no)
        mind = "no verdict" if not votes else "agree" if not (yes and no) else "disagree"
        said = "; ".join(f"{judge.label}: {_shown(verdict)}" for judge, verdict in zip(self.of, row, strict=True))
        reason, judge = f"{mind} ({said})", f"{self.name}/{self.version}"
        return Verdict(value=value, reason=reason, judge=judge, disputed=bool(yes and no))


def _shown(verdict: Verdict) -> str:
    return f"{verdict.value:g}, {verdict.reason}" if verdict.judged else f"none, {verdict.reason}"
