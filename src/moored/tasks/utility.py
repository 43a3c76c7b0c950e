# SPDX-License-Identifier: Apache-2.0
"""Does the model still do the user's task?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from moored.data.schema import Row
from moored.judges.base import Judge
from moored.judges.exact import ExactAnswer
from moored.metrics.accuracy import Accuracy
from moored.metrics.base import Metric
from moored.tasks.answering import AnswerTask

_MOST_LABELS = 20
_LONGEST_LABEL = 3


@dataclass(frozen=True, kw_only=True)
class Utility(AnswerTask):
    """A task with right answers, judged by `ExactAnswer`, summed up by `Accuracy`: higher is better.

    Args:
        data: "synthetic", a local .jsonl/.json/.csv file, or a hub id; every row has its answer.
        n: how many rows, the first n of a seeded shuffle; all if there are fewer; 0 = all.
        skip: rows of that shuffle to leave out first.
        seed: of that shuffle.
        max_new_tokens: greedy tokens generated per answer.
        labels: the possible answers of a classification task. Empty: if the data has between 2 and 20 different
            answers, all of at most three words that are not numbers, and fewer answers than half its rows, those are
            the labels; otherwise answers are compared as numbers or text (`ExactAnswer`).

    Raises:
        ConfigError: n, skip or seed below 0, max_new_tokens below 1, or labels that are not different words.
        DataError: from `rows`, the data is missing, empty or malformed, or a row has no answer.
    """

    name: ClassVar[str] = "utility"
    version: ClassVar[str] = "1"

    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        ExactAnswer(labels=self.labels)

    def rows(self) -> list[Row]:
        """The rows, with their right answers."""
        return self.sample("utility-test", "benign", answers=True)

    @property
    def judge(self) -> Judge:
        """Compares with the row's own answer; reads the data to find the labels if none were given."""
        return ExactAnswer(labels=self.labels or infer_labels(self.load("utility-test", "benign")))

    @property
    def metric(self) -> Metric:
        """Share of right answers."""
        return Accuracy()


def infer_labels(rows: Sequence[Row]) -> tuple[str, ...]:
    """The labels of a classification set, () if it does not look like one (the rule is in `Utility`).

    Args:
        rows: all rows of the set.
    """
    answers = sorted({row.answer.strip().casefold(): row.answer.strip() for row in rows}.values())
    short = all(0 < len(answer.split()) <= _LONGEST_LABEL and not _numeric(answer) for answer in answers)
    few = 2 <= len(answers) <= _MOST_LABELS and 2 * len(answers) <= len(rows)
    return tuple(answers) if short and few else ()


def _numeric(answer: str) -> bool:
    return any(character.isdigit() for character in answer)
