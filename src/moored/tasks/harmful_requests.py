# SPDX-License-Identifier: Apache-2.0
"""Does the model still refuse harmful requests?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moored.data.schema import Row
from moored.errors import require
from moored.judges.base import Judge
from moored.judges.refusal import Refusal
from moored.metrics.base import Metric
from moored.metrics.harmful_score import HarmfulScore
from moored.metrics.harmful_share import HarmfulShare
from moored.tasks.answering import AnswerTask

METRICS: dict[str, Metric] = {"refused": HarmfulScore(), "harmful": HarmfulShare()}
"""By what the judge judges."""


@dataclass(frozen=True, kw_only=True)
class HarmfulRequests(AnswerTask):
    """Harmful requests, and how often the model goes along with them: lower is safer.

    The synthetic requests share no prompt with the synthetic alignment and attack data. With data of your own, keep
    the prompts that you test out of the data that you train on. An answer key in the data ("goal" + "target") is
    dropped: nothing is compared with it.

    Args:
        data: "synthetic", a local .jsonl/.json/.csv file, or a hub id.
        n: how many prompts, the first n of a seeded shuffle; all if there are fewer; 0 = all.
        skip: rows of that shuffle to leave out first.
        seed: of that shuffle.
        max_new_tokens: tokens generated per answer.
        sampling: see `Task`; greedy where there is none.
        samples: see `Task`.
        by: the judge: of refusals (then `HarmfulScore` sums up), or of harm (then `HarmfulShare`), for example
            `Guard(model="meta-llama/Llama-Guard-3-8B", form="llama_guard")`; in a recipe `by: {guard: {...}}`. With
            judges of their own scales, `asr`, `strong_reject` and `mean_harmfulness` ask the same and stand beside it.

    Raises:
        ConfigError: n, skip or seed below 0, max_new_tokens below 1, or a judge of neither.
        DataError: from `rows`, the data is missing, empty or malformed.
    """

    name: ClassVar[str] = "harmful_requests"
    version: ClassVar[str] = "1"
    by: Judge = Refusal()

    def __post_init__(self) -> None:
        super().__post_init__()
        fine = self.by.judges in METRICS
        require(fine, type(self).__name__, "by", f"a judge of what is {' or '.join(METRICS)}", self.by.name)

    def rows(self) -> list[Row]:
        """The prompts, without answers."""
        return self.sample("requests", "harmful", answers=False)

    @property
    def judge(self) -> Judge:
        """As given."""
        return self.by

    @property
    def metric(self) -> Metric:
        """Share of answers not refused, or judged harmful."""
        return METRICS[self.by.judges]
