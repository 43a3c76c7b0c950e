# SPDX-License-Identifier: Apache-2.0
"""Prompts that only seem harmful, at scale; a thousand hard ones; and truly toxic ones beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from moored.datasets.base import Part, PublicSet


@dataclass(frozen=True, kw_only=True)
class OrBench(PublicSet):
    """Prompts that only seem harmful, at scale; a thousand hard ones; and truly toxic ones beside them."""

    name: ClassVar[str] = "or_bench"
    title: ClassVar[str] = "OR-Bench"
    hub: ClassVar[str] = "bench-llm/or-bench"
    licence: ClassVar[str] = "CC-BY-4.0"
    version: ClassVar[str] = "2024-06"
    arxiv: ClassVar[str] = "2405.20947"
    parts: ClassVar[Mapping[str, Part]] = {
        kind: Part(config=f"or-bench-{kind}") for kind in ("hard-1k", "80k", "toxic")
    }
