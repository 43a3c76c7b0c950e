# SPDX-License-Identifier: Apache-2.0
"""Does the model refuse what only looks harmful?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moored.data.schema import Row
from moored.judges.base import Judge
from moored.judges.refusal import Refusal
from moored.metrics.base import Metric
from moored.metrics.over_refusal import OverRefusal
from moored.tasks.answering import AnswerTask


@dataclass(frozen=True, kw_only=True)
class OverRefusalPrompts(AnswerTask):
    """Safe prompts in unsafe words ("kill a process"), judged by `Refusal`, summed up by `OverRefusal`.

    Lower is better. It stands beside every safety number: a model that refuses everything is safe and useless.

    Args:
        data: "synthetic", a local .jsonl/.json/.csv file, or a hub id; safe prompts only.
        n: how many prompts, the first n of a seeded shuffle; all if there are fewer; 0 = all.
        skip: rows of that shuffle to leave out first.
        seed: of that shuffle.
        max_new_tokens: greedy tokens generated per answer.

    Raises:
        ConfigError: n, skip or seed below 0, or max_new_tokens below 1.
        DataError: from `rows`, the data is missing, empty or malformed.
    """

    name: ClassVar[str] = "over_refusal"
    version: ClassVar[str] = "1"

    def rows(self) -> list[Row]:
        """The prompts, without answers."""
        return self.sample("lookalikes", "benign", answers=False)

    @property
    def judge(self) -> Judge:
        """The rule-based refusal judge."""
        return Refusal()

    @property
    def metric(self) -> Metric:
        """Share of answers refused."""
        return OverRefusal()
