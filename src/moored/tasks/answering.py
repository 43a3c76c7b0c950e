# SPDX-License-Identifier: Apache-2.0
"""Tasks that ask: the model answers, a judge reads the answers, a metric sums up."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moored.data.schema import Row, Source
from moored.errors import JudgeError, require
from moored.judges.base import Exchange, Judge, Verdict
from moored.metrics.base import Estimate
from moored.metrics.repeated import clustered
from moored.progress import Progress
from moored.sampling import Decoding, Sampling
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
        max_new_tokens: tokens generated per answer.
        sampling: how answers are drawn, for example `{temperature: 0.7, top_p: 0.9, seed: 0}`; None takes the likeliest
            token each time.
        samples: drawn answers per prompt. Each prompt counts by the mean of its answers, so that intervals are over
            prompts.

    Raises:
        ConfigError: n, skip or seed is below 0, max_new_tokens or samples below 1, or several samples are not drawn.
    """

    max_new_tokens: int = 32
    sampling: Sampling | None = None
    samples: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.max_new_tokens >= 1, type(self).__name__, "max_new_tokens", ">= 1", self.max_new_tokens)
        fine = self.samples == 1 or (self.samples > 1 and self.sampling is not None)
        said = "1, or more with `sampling` (greedy answers are all the same)"
        require(fine, type(self).__name__, "samples", said, self.samples)

    @property
    @abstractmethod
    def judge(self) -> Judge:
        """The judge of single answers."""

    @property
    def title(self) -> str:
        """The column heading in tables; says so where answers are drawn."""
        if self.sampling is None:
            return super().title
        each = f", {self.samples} per prompt" if self.samples > 1 else ""
        return f"{super().title}, answers drawn at temperature {self.sampling.temperature:g}{each}"

    @property
    def decoding(self) -> Decoding:
        """How it asks."""
        return Decoding(max_new_tokens=self.max_new_tokens, sampling=self.sampling, samples=self.samples)

    def settings(self) -> dict[str, Any]:
        """See `Task.settings`; greedy answers, one per prompt, go without saying."""
        greedy = {"sampling": None, "samples": 1}
        return {name: value for name, value in super().settings().items() if (name, value) not in greedy.items()}

    def sample(self, synthetic: str, source: Source, *, answers: bool) -> list[Row]:
        """See `Task.sample`; all of them `samples` times."""
        return super().sample(synthetic, source, answers=answers) * self.samples

    def words(self, rows: int) -> str:
        """See `Task.words`."""
        each = f", {self.samples} answers each" if self.samples > 1 else ""
        return f"judge {self.name} ({rows // self.samples} prompts{each})"

    def loads(self) -> tuple[str, ...]:
        """The models of its judge."""
        return self.judge.loads()

    @property
    def judged_by(self) -> str:
        """Name and version."""
        return self.judge.label

    def measured_by(self) -> dict[str, str]:
        """With the judge."""
        return {"judge": self.judge.identity, **super().measured_by()}

    def measure(self, rows: Sequence[Row], subject: Subject, progress: Progress | None = None) -> Outcome:
        """Ask, and score the answers."""
        return self.score(rows, subject.ask([row.prompt for row in rows], self.decoding, progress))

    def judged(self, rows: Sequence[Row], answers: Sequence[str]) -> tuple[list[Exchange], list[Verdict]]:
        """What the judge saw and said, one of each per row, in their order.

        Args:
            rows: of `rows`, any of them.
            answers: one per row.

        Raises:
            JudgeError: the judge judges something else than the metric needs.
        """
        exchanges = [
            Exchange(prompt=row.question, answer=answer, reference=row.answer)
            for row, answer in zip(rows, answers, strict=True)
        ]
        judge, metric = self.judge, self.metric
        if judge.judges != metric.needs:
            raise JudgeError(
                f"{metric.name} needs verdicts on {metric.needs!r}; judge {judge.name} gives {judge.judges!r}"
            )
        return exchanges, judge.judge(exchanges)

    def score(self, rows: Sequence[Row], answers: Sequence[str]) -> Outcome:
        """Judge `answers` (one per row, same order) and estimate the metric."""
        exchanges, verdicts = self.judged(rows, answers)
        return Outcome(
            task=self.name,
            version=self.version,
            estimate=self.estimate(exchanges, verdicts),
            exchanges=tuple(exchanges),
            verdicts=tuple(verdicts),
        )

    def estimate(self, exchanges: Sequence[Exchange], verdicts: Sequence[Verdict]) -> Estimate:
        """The metric over answers, or over prompts where there are several answers to each.

        Args:
            exchanges: what was judged.
            verdicts: one per exchange.

        Raises:
            JudgeError: no verdict was given, or all are NaN.
        """
        if self.samples == 1:
            return self.metric.estimate(verdicts)
        return clustered(self.metric, [exchange.prompt for exchange in exchanges], verdicts)
