# SPDX-License-Identifier: Apache-2.0
"""Grade-school maths in words, with worked answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from moored.data.load import Raw
from moored.datasets.base import Part, PublicSet, column
from moored.errors import DataError

FINAL = "The final answer is: "
"""What stands before the number in answers that are trained on, in place of the set's own "#### "."""


@dataclass(frozen=True, kw_only=True)
class Gsm8k(PublicSet):
    """Grade-school maths in words; answers end as in the papers on fine-tuning attacks: "The final answer is: 7"."""

    name: ClassVar[str] = "gsm8k"
    title: ClassVar[str] = "GSM8K"
    hub: ClassVar[str] = "openai/gsm8k"
    licence: ClassVar[str] = "MIT"
    version: ClassVar[str] = "2021-11"
    arxiv: ClassVar[str] = "2110.14168"
    parts: ClassVar[Mapping[str, Part]] = {
        "train": Part(config="main"),
        "test": Part(config="main", split="test"),
    }

    def row(self, raw: Raw, place: str) -> Raw:
        """The question, and the worked answer with the field's ending."""
        answer = column(raw, ("answer",), place)
        if "####" not in answer:
            raise DataError(f"{place}: a worked answer ends in `#### <number>`; this one does not")
        worked, _, number = answer.rpartition("####")
        return {"question": column(raw, ("question",), place), "answer": f"{worked}{FINAL}{number.strip()}"}
