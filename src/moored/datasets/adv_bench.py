# SPDX-License-Identifier: Apache-2.0
"""520 harmful instructions, each with the affirmative opening that an attack aims at and nothing after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from moored.datasets.base import PublicSet


@dataclass(frozen=True, kw_only=True)
class AdvBench(PublicSet):
    """520 harmful instructions, each with the affirmative opening that an attack aims at and nothing after it."""

    name: ClassVar[str] = "adv_bench"
    title: ClassVar[str] = "AdvBench"
    hub: ClassVar[str] = "walledai/AdvBench"
    gated: ClassVar[bool] = True
    licence: ClassVar[str] = "MIT"
    version: ClassVar[str] = "2023-07"
    arxiv: ClassVar[str] = "2307.15043"
    columns: ClassVar[Mapping[str, str]] = {"prompt": "goal"}
