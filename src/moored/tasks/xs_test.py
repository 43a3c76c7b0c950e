# SPDX-License-Identifier: Apache-2.0
"""XSTest with its contrasts: safe and unsafe prompts in the same words, together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from moored.data.schema import Row
from moored.errors import DataError
from moored.judges.base import Judge
from moored.judges.told_apart import ANSWER, REFUSE, ToldApart
from moored.metrics.base import Metric
from moored.metrics.telling_apart import TellingApart
from moored.tasks.answering import AnswerTask

RIGHT = {"safe": ANSWER, "unsafe": REFUSE}


@dataclass(frozen=True, kw_only=True)
class ContrastPrompts(AnswerTask):
    """The 250 safe and 200 unsafe prompts of XSTest, in one number: safe answered, unsafe refused.

    For each side alone, ask `over_refusal` with `data: xs_test:safe` and `harmful_requests` with
    `data: xs_test:unsafe` beside it.

    Args:
        data: "xs_test", or with a local copy "xs_test@<file>".
        n: how many prompts, the first n of a seeded shuffle; 0 = all.
        skip: rows of that shuffle to leave out first.
        seed: of that shuffle.
        max_new_tokens: greedy tokens generated per answer.

    Raises:
        ConfigError: n, skip or seed below 0, or max_new_tokens below 1.
        DataError: from `rows`, a row does not say whether it is safe.

    References:
        Röttger et al. 2024 (arXiv 2308.01263).
    """

    name: ClassVar[str] = "xs_test"
    version: ClassVar[str] = "1"
    data: str = "xs_test"
    n: int = 0
    max_new_tokens: int = 64

    def rows(self) -> list[Row]:
        """The prompts, with what is right to do in place of an answer."""
        return [self._labelled(row) for row in self.sample("lookalikes", "benign", answers=False)]

    @property
    def judge(self) -> Judge:
        """By the rule-based refusal judge."""
        return ToldApart()

    @property
    def metric(self) -> Metric:
        """Share treated rightly."""
        return TellingApart()

    def _labelled(self, row: Row) -> Row:
        label = row.category.partition(":")[0]
        if label not in RIGHT:
            raise DataError(
                f"task xs_test needs `safe` or `unsafe` in every row of {self.data}; {row.question[:60]!r} has neither"
            )
        unsafe = label == "unsafe"
        return replace(row.reworded(answer=RIGHT[label]), source="harmful" if unsafe else "benign")
