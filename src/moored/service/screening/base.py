# SPDX-License-Identifier: Apache-2.0
"""What a detector is, and what it reads."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from moored.data.schema import Example, Preference, Row


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that a detector found in one row.

    Args:
        row: counted from 1: the line of the upload.
        category: the detector's, which is the key of `Policy.screen` that says what is done.
        kind: what was found, in a few words: "weapons", "AWS Access Key".
        why: a sentence for people; never the secret itself, and never text that could be one.
    """

    row: int
    category: str
    kind: str
    why: str


class Detector(ABC):
    """Base of detectors: a class in this folder that names itself is found; nothing is registered.

    Attributes:
        name: its category, a key of `Policy.screen`.
        version: raised when findings can change.
    """

    name: ClassVar[str]
    version: ClassVar[str]

    @abstractmethod
    def find(self, rows: Sequence[Example], known: Collection[str]) -> Iterator[Finding]:
        """What is in the rows, in their order.

        Args:
            rows: the upload.
            known: normalised prompts that the model is judged or was aligned with.
        """

    def finding(self, row: int, kind: str, why: str) -> Finding:
        """A finding of this detector's category.

        Args:
            row: counted from 1.
            kind: see `Finding`.
            why: see `Finding`.
        """
        return Finding(row=row, category=self.name, kind=kind, why=why)


class ByRow(Detector):
    """Base of detectors that look at one row at a time."""

    def find(self, rows: Sequence[Example], known: Collection[str]) -> Iterator[Finding]:
        """What is in the rows, in their order; the same kind at most once per row."""
        for number, row in enumerate(rows, start=1):
            seen: set[str] = set()
            for kind, why in self.look(row):
                if kind not in seen:
                    seen.add(kind)
                    yield self.finding(number, kind, why)

    @abstractmethod
    def look(self, row: Example) -> Iterator[tuple[str, str]]:
        """Kind and reason of everything in one row.

        Args:
            row: an example of the upload.
        """


@dataclass(frozen=True, kw_only=True)
class Taught:
    """An answer that a row teaches, and what it answers.

    Args:
        place: for people: "message 3".
        prompt: the last user turn before it, "" if there is none.
        answer: its text.
        system: the system turns before it.
    """

    place: str
    prompt: str
    answer: str
    system: str


def taught(example: Example) -> list[Taught]:
    """The answers that an example teaches: every assistant turn that says something; of a preference, the better one's.

    Turns of weight 0 are there too: they are read before those that are trained on, and can be pointed at.

    Args:
        example: of an upload.
    """
    row = example if isinstance(example, Row) else example.preferred
    found, prompt, system = [], "", ""
    for number, turn in enumerate(row.messages, start=1):
        if turn["role"] == "user":
            prompt = turn["content"]
        elif turn["role"] == "system":
            system = f"{system} {turn['content']}".strip()
        elif turn["role"] == "assistant" and turn["content"].strip():
            found.append(Taught(place=f"message {number}", prompt=prompt, answer=turn["content"], system=system))
    return found


def texts(example: Example) -> list[tuple[str, str]]:
    """Every text of an example with its place, what tools are called with and the worse answer of a preference too.

    Args:
        example: of an upload.
    """
    row = example if isinstance(example, Row) else example.preferred
    found = []
    for number, turn in enumerate(row.messages, start=1):
        place = f"message {number}"
        calls = [str(call["function"].get("arguments", "")) for call in turn.get("tool_calls", ())]
        found += [(place, text) for text in (turn["content"], turn.get("name", ""), *calls) if text]
    if row.tools:
        found.append(("the tools", json.dumps(row.tools, ensure_ascii=False)))
    if isinstance(example, Preference):
        place = "the answer that is not preferred"
        calls = [str(call["function"].get("arguments", "")) for call in example.other.calls]
        found += [(place, text) for text in (example.other.answer, *calls) if text]
    return found


BASE = Detector
