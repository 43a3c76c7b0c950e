# SPDX-License-Identifier: Apache-2.0
"""313 forbidden prompts that a model can answer in substance, in six kinds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from moored.datasets.base import PublicSet


@dataclass(frozen=True, kw_only=True)
class StrongRejectPrompts(PublicSet):
    """313 forbidden prompts that a model can answer in substance, in six kinds."""

    name: ClassVar[str] = "strong_reject"
    title: ClassVar[str] = "StrongREJECT"
    hub: ClassVar[str] = "walledai/StrongREJECT"
    gated: ClassVar[bool] = True
    licence: ClassVar[str] = "MIT"
    version: ClassVar[str] = "v1, 313 prompts"
    arxiv: ClassVar[str] = "2402.10260"
    columns: ClassVar[Mapping[str, str]] = {"forbidden_prompt": "prompt"}
