# SPDX-License-Identifier: Apache-2.0
"""How far an answer has the words of the reference: Rouge-1."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from moored.judges.base import Exchange, Judge, Verdict


@dataclass(frozen=True, kw_only=True)
class Rouge1(Judge):
    """The F1 of shared words, each as often as both have it; lower-case letters and digits, no stemming.

    As `rouge_score` 0.1.2 computes it with `use_stemmer=False`, without that package's dependencies. An empty answer
    scores 0; a row without a reference is not judged (NaN).

    References:
        Lin 2004, "ROUGE: a package for automatic evaluation of summaries".
    """

    name: ClassVar[str] = "rouge1"
    version: ClassVar[str] = "1"
    judges: ClassVar[str] = "overlap"

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """One verdict per exchange, in the same order."""
        return [self._verdict(exchange) for exchange in exchanges]

    def _verdict(self, exchange: Exchange) -> Verdict:
        judge = f"{self.name}/{self.version}"
        if not _words(exchange.reference):
            return Verdict(value=math.nan, reason="no reference", judge=judge)
        value = rouge1(exchange.reference, exchange.answer)
        return Verdict(value=value, reason=f"Rouge-1 {value:.3f}", judge=judge)


def rouge1(reference: str, answer: str) -> float:
    """2 shared / (words of both), 0-1.

    Args:
        reference: what should be said.
        answer: what was said.
    """
    right, got = _words(reference), _words(answer)
    total = sum(right.values()) + sum(got.values())
    return 2 * (right & got).total() / total if total else 0.0


def _words(text: str) -> Counter[str]:
    return Counter(re.findall(r"[a-z0-9]+", text.lower()))
