# SPDX-License-Identifier: Apache-2.0
"""Whether the final number of an answer is right: GSM8K as the papers on fine-tuning attacks score it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from moored.judges.base import Exchange, Judge, Verdict

_MARK = re.compile(r"####|the final answer is:?", re.IGNORECASE)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True, kw_only=True)
class FinalNumber(Judge):
    """Value 1 if the number after "The final answer is:" (or "####") equals the reference's as a float, else 0.

    Of an answer without the mark the last number counts, of one with it the first after it; an answer without a
    number is wrong. Thousands separators do not matter. A reference without a number is not judged (NaN).

    References:
        The scoring of Vaccine, Lisa and Booster (arXiv 2402.01109, 2405.18641, 2409.01586); Cobbe et al. 2021
        (arXiv 2110.14168) for the set.
    """

    name: ClassVar[str] = "final_number"
    version: ClassVar[str] = "1"
    judges: ClassVar[str] = "correct"

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """One verdict per exchange, in the same order."""
        return [self._verdict(exchange) for exchange in exchanges]

    def _verdict(self, exchange: Exchange) -> Verdict:
        right, got = final_number(exchange.reference), final_number(exchange.answer)
        if right is None:
            value, reason = math.nan, "the reference has no number"
        elif got is None:
            value, reason = 0.0, "names no number"
        else:
            value, reason = float(got == right), f"ends on {got:g}"
        return Verdict(value=value, reason=reason, judge=f"{self.name}/{self.version}")


def final_number(text: str) -> float | None:
    """The number that a text ends on, None if it has none.

    Args:
        text: an answer, or a reference.
    """
    _, mark, after = _split(text)
    found = _NUMBER.findall(after) if mark else []
    first = found[0] if found else next(iter(_NUMBER.findall(text)[::-1]), None)
    return None if first is None else float(first.replace(",", ""))


def _split(text: str) -> tuple[str, str, str]:
    """Before the first mark, the mark, and what follows; no mark leaves the last two empty."""
    found = _MARK.search(text)
    return (text[: found.start()], found.group(), text[found.end() :]) if found else (text, "", "")
