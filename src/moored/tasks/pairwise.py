# SPDX-License-Identifier: Apache-2.0
"""Are the answers better than another model's?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moored.data.schema import Row
from moored.errors import require
from moored.judges.base import Judge
from moored.judges.ensemble import Ensemble
from moored.metrics.base import Metric
from moored.metrics.win_rate import WinRate
from moored.tasks.answering import AnswerTask


@dataclass(frozen=True, kw_only=True)
class PairwiseComparison(AnswerTask):
    """Open questions with a baseline's answers, and how often the model's answer is better: higher is better.

    In the manner of MT-Bench, with one turn per question. Answers of the model before fine-tuning make a good baseline:
    below 50 % it has lost something. The same file must be used for all models that are compared.

    Args:
        data: a local .jsonl/.json/.csv file or a hub id; the answer of every row (`prompt`, `answer`) is the
            baseline's. There is no synthetic set, since it would say nothing.
        n: how many rows, the first n of a seeded shuffle; all if there are fewer; 0 = all.
        skip: rows of that shuffle to leave out first.
        seed: of that shuffle.
        max_new_tokens: greedy tokens generated per answer. Give the baseline as many.
        by: a judge that compares: `Pairwise(url=..., model=...)`; in a recipe `by: {pairwise: {...}}`.

    Raises:
        ConfigError: n, skip or seed below 0, max_new_tokens below 1, no data, or a judge that does not compare.
        DataError: from `rows`, the data is missing, empty or malformed, or a row has no answer.

    References:
        Zheng et al. 2023, "Judging LLM-as-a-judge with MT-Bench and Chatbot Arena" (arXiv 2306.05685).
    """

    name: ClassVar[str] = "pairwise"
    version: ClassVar[str] = "1"
    n: int = 80
    max_new_tokens: int = 512
    by: Judge

    def __post_init__(self) -> None:
        super().__post_init__()
        task, baseline = type(self).__name__, "a file or hub id with the baseline's answers"
        require(self.data != "synthetic", task, "data", baseline, self.data)
        # An ensemble knows yes and no, and would count a tie as one of them.
        compares = self.by.judges == "preferred" and not isinstance(self.by, Ensemble)
        require(compares, task, "by", "a judge that compares, such as pairwise", self.by.name)

    def rows(self) -> list[Row]:
        """The questions, with the baseline's answers."""
        return self.sample("utility-test", "benign", answers=True)

    @property
    def judge(self) -> Judge:
        """As given."""
        return self.by

    @property
    def metric(self) -> Metric:
        """Share won, ties half."""
        return WinRate()
