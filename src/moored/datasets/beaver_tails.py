# SPDX-License-Identifier: Apache-2.0
"""Questions with answers of a model, each judged safe or unsafe by people, in 14 kinds of harm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from moored.datasets.base import Part, PublicSet


@dataclass(frozen=True, kw_only=True)
class BeaverTails(PublicSet):
    """Questions with answers of a model, each judged safe or unsafe by people, in 14 kinds of harm."""

    name: ClassVar[str] = "beaver_tails"
    title: ClassVar[str] = "BeaverTails"
    hub: ClassVar[str] = "PKU-Alignment/BeaverTails"
    licence: ClassVar[str] = "CC-BY-NC-4.0"
    version: ClassVar[str] = "2023-07"
    arxiv: ClassVar[str] = "2307.04657"
    parts: ClassVar[Mapping[str, Part]] = {
        f"{split}{suffix}": Part(split=split, keep=keep)
        for suffix, keep in (("", {}), ("/safe", {"is_safe": True}), ("/unsafe", {"is_safe": False}))
        for split in ("30k_train", "30k_test", "330k_train", "330k_test")
    }
