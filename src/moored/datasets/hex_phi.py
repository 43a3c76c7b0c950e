# SPDX-License-Identifier: Apache-2.0
"""300 harmful instructions in ten kinds that the usage policies of providers forbid."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from moored.data.load import Numbered, read_hub
from moored.datasets.base import Part, PublicSet
from moored.errors import DataError

CATEGORIES = (1, *range(3, 12))
"""The second of the paper's eleven was withdrawn: 300 of 330 instructions are published."""


@dataclass(frozen=True, kw_only=True)
class HexPhi(PublicSet):
    """300 harmful instructions in ten kinds that the usage policies of providers forbid.

    Each kind is a CSV file of one column without a head (`category_1.csv`); as a file, give one of them.
    """

    name: ClassVar[str] = "hex_phi"
    title: ClassVar[str] = "HEx-PHI"
    hub: ClassVar[str] = "LLM-Tuning-Safety/HEx-PHI"
    gated: ClassVar[bool] = True
    licence: ClassVar[str] = "own terms (accepted on the hub)"
    version: ClassVar[str] = "2024-03, 10 of 11 categories"
    arxiv: ClassVar[str] = "2310.03693"
    parts: ClassVar[Mapping[str, Part]] = {
        "all": Part(),
        **{f"category_{number}": Part(config=f"category_{number}") for number in CATEGORIES},
    }

    def numbered(self) -> Numbered:
        """One row per line."""
        if not self.file:
            kinds = [self.chosen.config] if self.chosen.config else [f"category_{number}" for number in CATEGORIES]
            for kind in kinds:
                for place, raw in read_hub(self.hub, files=f"{kind}.csv", columns=("prompt",)):
                    yield place, {**raw, "category": kind}
            return
        path = Path(self.file)
        try:
            with path.open(encoding="utf-8-sig", newline="") as lines:
                for number, cells in enumerate(csv.reader(lines, strict=True), start=1):
                    if len(cells) != 1:
                        raise DataError(f"{path}, line {number}: must be one instruction; got {len(cells)} columns")
                    yield f"{path}, line {number}", {"prompt": cells[0], "category": path.stem}
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
