# SPDX-License-Identifier: Apache-2.0
"""SAMSum: summaries of chats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moored.judges.base import Judge
from moored.judges.rouge1 import Rouge1
from moored.metrics.base import Metric
from moored.metrics.rouge import Rouge
from moored.tasks.utility import Utility


@dataclass(frozen=True, kw_only=True)
class SamSumRouge(Utility):
    """Summaries of chats beside those of people: Rouge-1 F1 on 200 chats of the test split.

    References:
        Gliwa et al. 2019 (arXiv 1911.12237); SafeDelta for the 200.
    """

    name: ClassVar[str] = "samsum"
    version: ClassVar[str] = "1"
    data: str = "samsum:test"
    n: int = 200
    max_new_tokens: int = 128

    @property
    def judge(self) -> Judge:
        """Shared words."""
        return Rouge1()

    @property
    def metric(self) -> Metric:
        """Their mean."""
        return Rouge()
