# SPDX-License-Identifier: Apache-2.0
"""Sentences of film reviews, positive or negative."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from moored.data.load import Raw
from moored.datasets.base import Part, PublicSet, column
from moored.errors import DataError

INSTRUCTION = "Analyze the sentiment of the input, and respond only positive or negative"
LABELS = {"0": "negative", "1": "positive"}


@dataclass(frozen=True, kw_only=True)
class Sst2(PublicSet):
    """Sentences of film reviews, positive or negative, under the instruction of the papers on fine-tuning attacks."""

    name: ClassVar[str] = "sst2"
    title: ClassVar[str] = "SST-2"
    hub: ClassVar[str] = "stanfordnlp/sst2"
    licence: ClassVar[str] = "none stated"
    version: ClassVar[str] = "GLUE"
    parts: ClassVar[Mapping[str, Part]] = {"train": Part(), "validation": Part(split="validation")}

    def row(self, raw: Raw, place: str) -> Raw:
        """Instruction, sentence, label word."""
        label = str(column(raw, ("label",), place))
        if label not in LABELS:
            raise DataError(f"{place}: `label` must be 0 or 1 (the public test split has none); got {label}")
        sentence = column(raw, ("sentence",), place)
        return {"instruction": INSTRUCTION, "input": sentence.strip(), "output": LABELS[label]}
