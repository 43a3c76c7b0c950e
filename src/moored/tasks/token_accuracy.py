# SPDX-License-Identifier: Apache-2.0
"""How many tokens of the right answers does the model foresee?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from moored.data.schema import Row
from moored.metrics.base import Metric
from moored.metrics.token_accuracy import TokenShare
from moored.progress import Progress
from moored.tasks.reading import Reading, ReadingTask
from moored.tasks.subject import Subject


@dataclass(frozen=True, kw_only=True)
class TokenAccuracy(ReadingTask):
    """Share of the reference answers' tokens that the model holds for the most likely, 1/T sum_t [y_t = argmax p_t].

    T are the tokens of all answers together, each with the token that ends its turn. Before each the model reads the
    prompt as it is served, and the answer's own tokens so far.

    Args:
        data: "synthetic", a local .jsonl/.json/.csv file, or a hub id; every row has its answer.
        n: how many rows, the first n of a seeded shuffle; all if there are fewer; 0 = all.
        skip: rows of that shuffle to leave out first.
        seed: of that shuffle.
        max_length: tokens kept of a row, prompt included; answers lose their end.

    Raises:
        ConfigError: n, skip or seed below 0, or max_length below 1.
        DataError: from `rows`, the data is missing, empty or malformed, or a row has no answer.
    """

    name: ClassVar[str] = "token_accuracy"
    version: ClassVar[str] = "1"

    def rows(self) -> list[Row]:
        """The rows, with their answers."""
        return self.sample("utility-test", "benign", answers=True)

    @property
    def metric(self) -> Metric:
        """Of the share of each row's tokens."""
        return TokenShare()

    def read(self, rows: Sequence[Row], subject: Subject, progress: Progress | None) -> list[Reading]:
        """The share of each answer's tokens."""
        return self.over_answers(
            rows, subject, progress, lambda logits, targets: (logits.argmax(-1) == targets).float()
        )
