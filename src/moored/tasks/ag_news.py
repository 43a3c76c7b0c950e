# SPDX-License-Identifier: Apache-2.0
"""AG News as the papers on fine-tuning attacks measure it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moored.datasets.ag_news import AgNews
from moored.tasks.utility import Utility


@dataclass(frozen=True, kw_only=True)
class AgNewsAccuracy(Utility):
    """One of four kinds of news, on 1000 articles of the test split; read as in `sst2`."""

    name: ClassVar[str] = "ag_news"
    version: ClassVar[str] = "1"
    data: str = "ag_news:test"
    n: int = 1000
    max_new_tokens: int = 8
    labels: tuple[str, ...] = AgNews.labels
