# SPDX-License-Identifier: Apache-2.0
"""Whether an answer is the right one: by label word, by number, or word for word."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from moored.errors import require
from moored.judges.base import Exchange, Judge, Verdict

_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")
_FINAL = re.compile(r"(?:####|\banswer(?: is|:))[^\d\n+-]{0,20}([-+]?\d[\d,]*(?:\.\d+)?)", re.IGNORECASE)
_JOINED = re.compile(r"\W*(?:\b(?:or|and|nor)\b|[/,|&])\W*", re.IGNORECASE)
_NEGATED = re.compile(r"(?:\b(?:not|never|neither|isn't|isn’t)|\bnon-)\W*(?:\w+\W+)?$", re.IGNORECASE)

Decision = tuple[float, str]


@dataclass(frozen=True, kw_only=True)
class ExactAnswer(Judge):
    """Whether an answer names the reference and nothing else: value 1 = correct, 0 = wrong.

    With `labels`, the first label word of the answer decides. Naming two ("negative or positive"), negating one
    ("not positive") and naming none are wrong, and so is an empty answer. What follows the first label is not read:
    "positive, since it is never negative" is positive.

    Without labels, a reference that is a number is compared with the answer's final number: the one after "####" or
    "the answer is", else the last one ("1,000", "$1000" and "1000.00" are the same). Any other reference is compared
    as text, without case, punctuation and spacing.

    Args:
        labels: all the labels of the task; () compares numbers or text.

    Raises:
        ConfigError: a label has no letter or digit, or two labels differ by nothing but case.
    """

    name: ClassVar[str] = "exact_answer"
    version: ClassVar[str] = "1"
    judges: ClassVar[str] = "correct"

    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        plain = [_plain(label) for label in self.labels]
        fine = all(plain) and len(set(plain)) == len(plain)
        require(fine, "ExactAnswer", "labels", "different words", self.labels)

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """One verdict per exchange, in the same order; NaN where there is no reference (or it is no label)."""
        return [self._verdict(exchange) for exchange in exchanges]

    def _verdict(self, exchange: Exchange) -> Verdict:
        value, reason = self._decide(exchange.answer, exchange.reference)
        return Verdict(value=value, reason=reason, judge=f"{self.name}/{self.version}")

    def _decide(self, answer: str, reference: str) -> Decision:
        if not reference.strip():
            return math.nan, "no reference answer"
        if self.labels and _plain(reference) not in map(_plain, self.labels):
            return math.nan, f"the reference {reference.strip()[:40]!r} is none of the labels"
        if not answer.strip():
            return 0.0, "empty answer"
        if self.labels:
            return self._by_label(answer, _plain(reference))
        right = _final_number(reference)
        if right is not None and ("####" in reference or _is_number(reference)):
            return _by_number(answer, right)
        return float(_plain(answer) == _plain(reference)), "compared as text"

    def _by_label(self, answer: str, reference: str) -> Decision:
        # Longest first, so that "very positive" is not read as "positive".
        words = sorted((re.escape(label.strip()) for label in self.labels), key=len, reverse=True)
        found = list(re.finditer(rf"(?<!\w)(?:{'|'.join(words)})(?!\w)", answer, re.IGNORECASE))
        if not found:
            return 0.0, "names no label"
        first, label = found[0], _plain(found[0].group())
        if _NEGATED.search(answer[max(0, first.start() - 40) : first.start()]):
            return 0.0, f"negates {label!r}"
        if len(found) > 1 and _plain(found[1].group()) != label:
            between = answer[first.end() : found[1].start()]
            if _JOINED.fullmatch(between):
                return 0.0, "names two labels"
        return float(label == reference), f"names {label!r}"


def _plain(text: str) -> str:
    """Words only, lower case, single spaces."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[$€£]?\s*[-+]?\d[\d,]*(?:\.\d+)?\s*%?\.?", text.strip()) is not None


def _final_number(text: str) -> float | None:
    """The number that a text ends on: after its last final-answer mark, else its last number."""
    marked = _FINAL.findall(text)
    numbers = marked or _NUMBER.findall(text)
    return float(numbers[-1].replace(",", "")) if numbers else None


def _by_number(answer: str, right: float) -> Decision:
    got = _final_number(answer)
    if got is None:
        return 0.0, "names no number"
    return float(math.isclose(got, right, rel_tol=1e-9, abs_tol=1e-9)), f"names {got:g}"
