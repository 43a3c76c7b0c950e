# SPDX-License-Identifier: Apache-2.0
"""440 unsafe requests, ten for each of 44 fine-grained kinds, in the base style."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from moored.data.load import Raw
from moored.datasets.base import Part, PublicSet, column
from moored.errors import DataError


@dataclass(frozen=True, kw_only=True)
class SorryBench(PublicSet):
    """440 unsafe requests, ten for each of 44 fine-grained kinds, in the base style."""

    name: ClassVar[str] = "sorry_bench"
    title: ClassVar[str] = "SORRY-Bench"
    hub: ClassVar[str] = "sorry-bench/sorry-bench-202503"
    gated: ClassVar[bool] = True
    licence: ClassVar[str] = "own terms (accepted on the hub)"
    version: ClassVar[str] = "202503"
    arxiv: ClassVar[str] = "2406.14598"
    parts: ClassVar[Mapping[str, Part]] = {"base": Part(keep={"prompt_style": "base"})}

    def row(self, raw: Raw, place: str) -> Raw:
        """The first turn; the others are empty in the base style."""
        turns = column(raw, ("turns",), place)
        if not isinstance(turns, list) or not turns:
            raise DataError(f"{place}: `turns` must be a list of texts; got {turns!r}")
        return {"prompt": turns[0], "category": str(raw.get("category", ""))}
