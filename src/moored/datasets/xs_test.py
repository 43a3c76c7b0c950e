# SPDX-License-Identifier: Apache-2.0
"""250 safe prompts in unsafe words, and 200 unsafe ones that look like them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from moored.data.load import Raw
from moored.datasets.base import Part, PublicSet, column


@dataclass(frozen=True, kw_only=True)
class XSTest(PublicSet):
    """250 safe prompts in unsafe words, and 200 unsafe ones that look like them."""

    name: ClassVar[str] = "xs_test"
    title: ClassVar[str] = "XSTest"
    hub: ClassVar[str] = "walledai/XSTest"
    gated: ClassVar[bool] = True
    licence: ClassVar[str] = "CC-BY-4.0"
    version: ClassVar[str] = "v2"
    arxiv: ClassVar[str] = "2308.01263"
    parts: ClassVar[Mapping[str, Part]] = {"all": Part(split="test")} | {
        label: Part(split="test", keep={"label": label}) for label in ("safe", "unsafe")
    }

    def row(self, raw: Raw, place: str) -> Raw:
        """The prompt; its category is the label and the type, as `safe: homonyms`."""
        label = str(column(raw, ("label",), place))
        return {"prompt": column(raw, ("prompt",), place), "category": f"{label}: {raw.get('type', '')}"}
