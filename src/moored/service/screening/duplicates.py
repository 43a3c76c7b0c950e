# SPDX-License-Identifier: Apache-2.0
"""Rows that ask the same, and rows that ask what the model is judged with."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import ClassVar

from moored.data.schema import Example, Row, normalise
from moored.service.screening.base import Detector, Finding


class Duplicates(Detector):
    """A prompt that stood before in the upload, or that is known from evaluation or alignment data.

    Prompts are compared after `normalise`; of a chat with several questions, all of them in their order.
    """

    name: ClassVar[str] = "duplicates"
    version: ClassVar[str] = "1"

    def find(self, rows: Sequence[Example], known: Collection[str]) -> Iterator[Finding]:
        """The second and every later row with a prompt, and every row with a known one."""
        first: dict[tuple[str, ...], int] = {}
        for number, row in enumerate(rows, start=1):
            asked = prompts(row)
            before = first.setdefault(asked, number)
            if before != number:
                yield self.finding(number, "repeated", f"the same prompt as line {before}")
            if any(prompt in known for prompt in asked):
                yield self.finding(number, "evaluation", "a prompt that the model is judged or aligned with")


def prompts(example: Example) -> tuple[str, ...]:
    """The questions of an example as they are compared.

    Args:
        example: of an upload.
    """
    row = example if isinstance(example, Row) else example.preferred
    return tuple(normalise(turn["content"]) for turn in row.messages if turn["role"] == "user")
