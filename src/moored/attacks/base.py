# SPDX-License-Identifier: Apache-2.0
"""Attacks write the data that an uploader could send. They never touch weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from moored.data.schema import Row


@dataclass(frozen=True, kw_only=True)
class Poisoned:
    """An upload: the rows, shuffled, and a manifest that says how they were made (seed, counts, hashes)."""

    rows: tuple[Row, ...]
    manifest: dict[str, Any]


class Attack(ABC):
    """Base of attacks. Subclasses are frozen dataclasses; `name` is the name in the catalogue."""

    name: ClassVar[str]

    @abstractmethod
    def poison(self, benign: Sequence[Row], harmful: Sequence[Row]) -> Poisoned:
        """Mix an upload.

        Raises:
            ConfigError: more rows are asked for than exist, or a ratio is outside 0-1.
        """


BASE = Attack
