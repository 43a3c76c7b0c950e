# SPDX-License-Identifier: Apache-2.0
"""How well does the model foresee the right answers?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from moored.data.schema import Row
from moored.metrics.base import Metric
from moored.metrics.perplexity import TokenPerplexity
from moored.progress import Progress
from moored.tasks.reading import Reading, ReadingTask
from moored.tasks.subject import Subject


@dataclass(frozen=True, kw_only=True)
class Perplexity(ReadingTask):
    """Perplexity of the reference answers, exp(-1/T sum_t log p(y_t | y_<t, prompt)): lower is better.

    T are the tokens of all answers together, each with the token that ends its turn: the tokens that training learns.
    The model reads the prompt as it is served; log-softmax is in fp32. Models with other tokenizers have other tokens,
    so that their perplexities do not compare.

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

    name: ClassVar[str] = "perplexity"
    version: ClassVar[str] = "1"

    def rows(self) -> list[Row]:
        """The rows, with their answers."""
        return self.sample("utility-test", "benign", answers=True)

    @property
    def metric(self) -> Metric:
        """Of the mean loss per token."""
        return TokenPerplexity()

    def read(self, rows: Sequence[Row], subject: Subject, progress: Progress | None) -> list[Reading]:
        """The mean loss of each answer's tokens."""
        from moored.ops.divergence import token_log_probabilities

        return self.over_answers(rows, subject, progress, lambda *found: -token_log_probabilities(*found))
