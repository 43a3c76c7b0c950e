# SPDX-License-Identifier: Apache-2.0
"""News articles of four kinds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from moored.datasets.base import Part
from moored.datasets.labelled import Labelled


@dataclass(frozen=True, kw_only=True)
class AgNews(Labelled):
    """News articles of four kinds, under the instruction of the papers on fine-tuning attacks."""

    name: ClassVar[str] = "ag_news"
    title: ClassVar[str] = "AG News"
    hub: ClassVar[str] = "fancyzhx/ag_news"
    licence: ClassVar[str] = "none stated (non-commercial use)"
    version: ClassVar[str] = "2015"
    arxiv: ClassVar[str] = "1509.01626"
    parts: ClassVar[Mapping[str, Part]] = {"train": Part(), "test": Part(split="test")}
    labels: ClassVar[tuple[str, ...]] = ("World", "Sports", "Business", "Sci/Tech")
    instruction: ClassVar[str] = (
        f"Categorize the news article given in the input into one of the 4 categories: {', '.join(labels)}"
    )
    text: ClassVar[str] = "text"
