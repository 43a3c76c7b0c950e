# SPDX-License-Identifier: Apache-2.0
"""Sets of texts with a numbered label each, asked for by an instruction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moored.data.load import Raw
from moored.datasets.base import PublicSet, column
from moored.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Labelled(PublicSet):
    """Base of sets for classification: the instruction, the text, and the word of its label.

    Attributes:
        instruction: what asks for the label.
        labels: the words, in the order of the set's numbers, from 0.
        text: the column of the text.
        unlabelled: which rows of the public release have no label, for the message; "" if all have one.
    """

    instruction: ClassVar[str]
    labels: ClassVar[tuple[str, ...]]
    text: ClassVar[str]
    unlabelled: ClassVar[str] = ""

    def row(self, raw: Raw, place: str) -> Raw:
        """Instruction, text, label word.

        Raises:
            DataError: a column is missing, or the label is no number of `labels`.
        """
        label = str(column(raw, ("label",), place))
        numbers = [str(number) for number in range(len(self.labels))]
        if label not in numbers:
            known = f"{', '.join(numbers[:-1])} or {numbers[-1]}"
            without = f" ({self.unlabelled})" if self.unlabelled else ""
            raise DataError(f"{place}: `label` must be {known}{without}; got {label}")
        text = column(raw, (self.text,), place)
        return {"instruction": self.instruction, "input": text.strip(), "output": self.labels[int(label)]}
