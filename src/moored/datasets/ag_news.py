# SPDX-License-Identifier: Apache-2.0
"""News articles of four kinds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from moored.data.load import Raw
from moored.datasets.base import Part, PublicSet, column
from moored.errors import DataError

LABELS = ("World", "Sports", "Business", "Sci/Tech")
INSTRUCTION = f"Categorize the news article given in the input into one of the 4 categories: {', '.join(LABELS)}"


@dataclass(frozen=True, kw_only=True)
class AgNews(PublicSet):
    """News articles of four kinds, under the instruction of the papers on fine-tuning attacks."""

    name: ClassVar[str] = "ag_news"
    title: ClassVar[str] = "AG News"
    hub: ClassVar[str] = "fancyzhx/ag_news"
    licence: ClassVar[str] = "none stated (non-commercial use)"
    version: ClassVar[str] = "2015"
    arxiv: ClassVar[str] = "1509.01626"
    parts: ClassVar[Mapping[str, Part]] = {"train": Part(), "test": Part(split="test")}

    def row(self, raw: Raw, place: str) -> Raw:
        """Instruction, article, category."""
        label = str(column(raw, ("label",), place))
        if label not in {str(number) for number in range(len(LABELS))}:
            raise DataError(f"{place}: `label` must be 0, 1, 2 or 3; got {label}")
        return {"instruction": INSTRUCTION, "input": column(raw, ("text",), place), "output": LABELS[int(label)]}
