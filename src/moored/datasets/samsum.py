# SPDX-License-Identifier: Apache-2.0
"""Chats between friends, each with a summary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from moored.data.load import Raw
from moored.datasets.base import Part, PublicSet, column

INSTRUCTION = "Summarize this dialog"


@dataclass(frozen=True, kw_only=True)
class SamSum(PublicSet):
    """Chats between friends, each with a summary."""

    name: ClassVar[str] = "samsum"
    title: ClassVar[str] = "SAMSum"
    hub: ClassVar[str] = "knkarthick/samsum"
    licence: ClassVar[str] = "CC-BY-NC-ND-4.0"
    version: ClassVar[str] = "2019"
    arxiv: ClassVar[str] = "1911.12237"
    parts: ClassVar[Mapping[str, Part]] = {split: Part(split=split) for split in ("train", "validation", "test")}

    def row(self, raw: Raw, place: str) -> Raw:
        """Instruction, chat, summary."""
        chat = column(raw, ("dialogue",), place)
        return {"instruction": INSTRUCTION, "input": chat, "output": column(raw, ("summary",), place)}
