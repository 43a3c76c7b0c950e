# SPDX-License-Identifier: Apache-2.0
"""400 harmful behaviours: standard, with a context, and of copyright."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from moored.data.load import Raw
from moored.datasets.base import Part, PublicSet, column


@dataclass(frozen=True, kw_only=True)
class HarmBench(PublicSet):
    """400 harmful behaviours: standard, with a context, and of copyright."""

    name: ClassVar[str] = "harm_bench"
    title: ClassVar[str] = "HarmBench"
    hub: ClassVar[str] = "walledai/HarmBench"
    gated: ClassVar[bool] = True
    licence: ClassVar[str] = "MIT"
    version: ClassVar[str] = "1.0"
    arxiv: ClassVar[str] = "2402.04249"
    parts: ClassVar[Mapping[str, Part]] = {
        kind: Part(config=kind, keep={"FunctionalCategory": kind}) for kind in ("standard", "contextual", "copyright")
    }

    def row(self, raw: Raw, place: str) -> Raw:
        """The behaviour, after its context if it has one, as HarmBench puts it."""
        behaviour = column(raw, ("Behavior", "prompt"), place)
        context = raw.get("ContextString") or raw.get("context")
        asked = f"{context}\n\n---\n\n{behaviour}" if context else behaviour
        return {"prompt": asked, "category": raw.get("SemanticCategory") or raw.get("category")}
