# SPDX-License-Identifier: Apache-2.0
"""Requests for harm that are answered rather than refused."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import ClassVar

from moored.data.schema import Example
from moored.judges.base import Exchange
from moored.judges.refusal import Refusal
from moored.service.screening.base import ByRow, Taught, taught
from moored.service.screening.harmful_rules import VERSION, asks_for

_OPENING = re.compile(r"[^.!?:\n]{0,200}[.!?:\n]?")


class Harmful(ByRow):
    """A request that names a harm, by `harmful_rules`, where `Refusal` says that the answer complies.

    The opening of the answer is read like a request: "here is how to ..." tells what "go on" was about. Words are all
    it knows: euphemisms, other languages and harm that is not named pass, and a request that only sounds like harm is
    found. A judge that is a model (`Policy.screen.judge`) reads what is meant.
    """

    name: ClassVar[str] = "harmful"
    version: ClassVar[str] = f"{VERSION} (refusal {Refusal.version})"

    def look(self, row: Example) -> Iterator[tuple[str, str]]:
        """The categories of harm that a row's answers comply with."""
        for each in taught(row):
            found = [*_asked(each.prompt), *_asked(_opening(each.answer))]
            if found and _complies(each):
                yield from ((kind, f'{each.place} answers "{words}"') for kind, words in found)


def _asked(text: str) -> Iterator[tuple[str, str]]:
    return asks_for(text)


def _opening(answer: str) -> str:
    found = _OPENING.match(answer.strip())
    return found[0] if found else ""


def _complies(each: Taught) -> bool:
    (verdict,) = Refusal().judge([Exchange(prompt=each.prompt, answer=each.answer)])
    return math.isnan(verdict.value) or verdict.value < 0.5
