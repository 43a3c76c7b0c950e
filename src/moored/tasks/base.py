# SPDX-License-Identifier: Apache-2.0
"""A task = rows + prompt + judge + metric + version: one number about a model."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from moored.data.load import load_rows
from moored.data.schema import Row, Source
from moored.errors import DataError, JudgeError, require
from moored.judges.base import Exchange, Judge, Verdict
from moored.metrics.base import Estimate, Metric


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a task measured: the estimate and every exchange and verdict behind it."""

    task: str
    version: str
    estimate: Estimate
    exchanges: tuple[Exchange, ...]
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """Base of tasks. Subclasses are frozen dataclasses.

    Args:
        data: "synthetic", a local .jsonl/.json/.csv file, or a hub id.
        n: how many rows to judge, the first n of a seeded shuffle; all if there are fewer (`Estimate.n` says how many
            it rests on); 0 = all.
        skip: rows at the start of that shuffle to leave out: a validation split is `n` rows, the test split those
            behind them.
        seed: of that shuffle.
        max_new_tokens: greedy tokens generated per answer.

    Raises:
        ConfigError: n, skip or seed is below 0, or max_new_tokens below 1.
    """

    name: ClassVar[str]
    version: ClassVar[str]
    data: str = "synthetic"
    n: int = 64
    skip: int = 0
    seed: int = 0
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        task = type(self).__name__
        require(self.n >= 0, task, "n", ">= 0 (0 = all rows)", self.n)
        require(self.skip >= 0, task, "skip", ">= 0", self.skip)
        require(self.seed >= 0, task, "seed", ">= 0", self.seed)
        require(self.max_new_tokens >= 1, task, "max_new_tokens", ">= 1", self.max_new_tokens)

    @abstractmethod
    def rows(self) -> list[Row]:
        """The rows; `Row.answer` is the reference where the task has one."""

    @property
    @abstractmethod
    def judge(self) -> Judge:
        """The judge of single answers."""

    @property
    @abstractmethod
    def metric(self) -> Metric:
        """The metric over verdicts."""

    @property
    def title(self) -> str:
        """The column heading in tables."""
        return self.metric.title

    def settings(self) -> dict[str, Any]:
        """What decides the number beside the model and the rows, as plain JSON; what has no parameters has none."""
        decides = {name: value for name, value in asdict(self).items() if name not in ("data", "n", "skip", "seed")}
        return {name: value for name, value in decides.items() if value != {}}

    def load(self, synthetic: str, source: Source) -> list[Row]:
        """All rows of `data`, each prompt once: the first row that asks it stays.

        Args:
            synthetic: the synthetic set that `data="synthetic"` stands for.
            source: given to every row.

        Raises:
            DataError: the data is missing, empty or malformed.
        """
        where = f"synthetic:{synthetic}" if self.data == "synthetic" else self.data
        return list({row.question.strip(): row for row in reversed(load_rows(where, source=source))}.values())[::-1]

    def sample(self, synthetic: str, source: Source, *, answers: bool) -> list[Row]:
        """The rows to judge: the first `n` of a seeded shuffle of `load`.

        Args:
            synthetic: see `load`.
            source: see `load`.
            answers: keep the answers as references, and insist on them; otherwise drop them.

        Raises:
            DataError: see `load`; also a row without an answer where `answers` are needed.
        """
        rows = self.load(synthetic, source)
        if answers:
            for row in rows:
                if not row.answer.strip():
                    raise DataError(
                        f"task {self.name} needs an answer in every row of {self.data}; {row.question[:60]!r} has none"
                    )
        else:
            rows = [replace(row, messages=row.prompt) for row in rows]
        random.Random(self.seed).shuffle(rows)
        if self.skip >= len(rows):
            raise DataError(f"`skip` of task {self.name} leaves none of the {len(rows)} rows of {self.data}; lower it")
        return rows[self.skip :][: self.n or None]

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
            estimate=self.metric.estimate(verdicts),
            exchanges=tuple(exchanges),
            verdicts=tuple(verdicts),
        )


BASE = Task
