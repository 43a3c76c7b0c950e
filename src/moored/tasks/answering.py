# SPDX-License-Identifier: Apache-2.0
"""Tasks that ask: the model answers, a judge reads the answers, a metric sums up."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from moored.data.schema import Row
from moored.errors import JudgeError, require
from moored.judges.base import Exchange, Judge
from moored.progress import Progress
from moored.tasks.base import Outcome, Task
from moored.tasks.subject import Subject


@dataclass(frozen=True, kw_only=True)
class AnswerTask(Task):
    """Base of tasks on a model's answers.

    Args:
        data: see `Task`.
        n: see `Task`.
        skip: see `Task`.
        seed: see `Task`.
        max_new_tokens: greedy tokens generated per answer.

    Raises:
        ConfigError: n, skip or seed is below 0, or max_new_tokens below 1.
    """

    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.max_new_tokens >= 1, type(self).__name__, "max_new_tokens", ">= 1", self.max_new_tokens)

    @property
    @abstractmethod
    def judge(self) -> Judge:
        """The judge of single answers."""

    @property
    def judged_by(self) -> str:
        """Name and version."""
        return self.judge.label

    def measured_by(self) -> dict[str, str]:
        """With the judge."""
        judge = self.judge
        return {"judge": f"{judge.name} {judge.version}", **super().measured_by()}

    def measure(self, rows: Sequence[Row], subject: Subject, progress: Progress | None = None) -> Outcome:
        """Ask, and score the answers."""
        return self.score(rows, subject.ask([row.prompt for row in rows], self.max_new_tokens, progress))

    def score(self, rows: Sequence[Row], answers: Sequence[str]) -> Outcome:
        """Judge `answers` (one per row, same order) and estimate the metric."""
        exchanges = tuple(
            Exchange(prompt=row.question, answer=answer, reference=row.answer)
            for row, answer in zip(rows, answers, strict=True)
        )
        judge, metric = self.judge, self.metric
        if judge.judges != metric.needs:
            raise JudgeError(
                f"{metric.name} needs verdicts on {metric.needs!r}; judge {judge.name} gives {judge.judges!r}"
            )
        verdicts = tuple(judge.judge(exchanges))
        return Outcome(
            task=self.name,
            version=self.version,
            estimate=metric.estimate(verdicts),
            exchanges=exchanges,
            verdicts=verdicts,
        )
