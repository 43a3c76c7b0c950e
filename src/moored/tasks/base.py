# SPDX-License-Identifier: Apache-2.0
"""A task = rows + how they are measured + metric + version: one number about a model.

::

    Task ── AnswerTask     the model answers, and a judge reads the answers (`answering.py`)
         ── ReadingTask    the model itself is read: its probabilities, its hidden states (`reading.py`)
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from moored.data.load import load_rows
from moored.data.schema import Row, Source
from moored.errors import DataError, require
from moored.judges.base import Exchange, Verdict
from moored.method import Need
from moored.metrics.base import Estimate, Metric
from moored.progress import Progress
from moored.tasks.subject import Subject


@dataclass(frozen=True, kw_only=True)
class Depth:
    """What a reading of hidden states found at one depth of a model.

    Args:
        depth: 0 for the embeddings, then the decoder layers from 1; the last is read behind the final norm.
        distance: the task's estimate at this depth, in its unit.
        angle: mean of 1 - cosine, 0 to 2.
    """

    depth: int
    distance: Estimate
    angle: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a task measured: the estimate, and every exchange and verdict (of a reading: row and value) behind it."""

    task: str
    version: str
    estimate: Estimate
    exchanges: tuple[Exchange, ...]
    verdicts: tuple[Verdict, ...]
    depths: tuple[Depth, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """Base of tasks. Subclasses are frozen dataclasses.

    Args:
        data: "synthetic", a local .jsonl/.json/.csv file, or a hub id.
        n: how many rows to measure on, the first n of a seeded shuffle; all if there are fewer (`Estimate.n` says how
            many it rests on); 0 = all.
        skip: rows at the start of that shuffle to leave out: a validation split is `n` rows, the test split those
            behind them.
        seed: of that shuffle.

    Attributes:
        name: the name in the catalogue.
        version: raised when the same model would get another number.
        needs: the models that it looks at beside the one that it measures: `Need.ALIGNED`, which tuning started from.

    Raises:
        ConfigError: n, skip or seed is below 0.
    """

    name: ClassVar[str]
    version: ClassVar[str]
    needs: ClassVar[frozenset[Need]] = frozenset()
    data: str = "synthetic"
    n: int = 64
    skip: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        task = type(self).__name__
        require(self.n >= 0, task, "n", ">= 0 (0 = all rows)", self.n)
        require(self.skip >= 0, task, "skip", ">= 0", self.skip)
        require(self.seed >= 0, task, "seed", ">= 0", self.seed)

    @abstractmethod
    def rows(self) -> list[Row]:
        """The rows; `Row.answer` is the reference where the task has one."""

    @property
    @abstractmethod
    def metric(self) -> Metric:
        """The metric over verdicts."""

    @abstractmethod
    def measure(self, rows: Sequence[Row], subject: Subject, progress: Progress | None = None) -> Outcome:
        """The number.

        Args:
            rows: those of `rows`, which may have been read earlier.
            subject: what is measured.
            progress: told how many rows are done.

        Raises:
            NeedsError: the task looks at something that the subject does not have.
            JudgeError: nothing could be judged.
        """

    @abstractmethod
    def words(self, rows: int) -> str:
        """What it does, in a few words: for example `judge over_refusal (64 prompts)`.

        Args:
            rows: how many.
        """

    def loads(self) -> tuple[str, ...]:
        """The models that it loads beside those it looks at (its judge's), as they were named."""
        return ()

    @property
    def title(self) -> str:
        """The column heading in tables."""
        return self.metric.title

    @property
    def judged_by(self) -> str:
        """What tables say of the judge; "" if there is none."""
        return ""

    def measured_by(self) -> dict[str, str]:
        """What turns the model into a number, by name and version: part of the key of a stage."""
        return {"metric": self.metric.name}

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


BASE = Task
