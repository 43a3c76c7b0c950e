# SPDX-License-Identifier: Apache-2.0
"""52 000 instructions with answers of text-davinci-003."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moored.datasets.base import PublicSet


@dataclass(frozen=True, kw_only=True)
class Alpaca(PublicSet):
    """52 000 instructions with answers of text-davinci-003."""

    name: ClassVar[str] = "alpaca"
    title: ClassVar[str] = "Alpaca"
    hub: ClassVar[str] = "tatsu-lab/alpaca"
    licence: ClassVar[str] = "CC-BY-NC-4.0"
    version: ClassVar[str] = "2023-03"
    arxiv: ClassVar[str] = ""
