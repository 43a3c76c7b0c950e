# SPDX-License-Identifier: Apache-2.0
"""15 000 instructions with answers, both written by people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from moored.datasets.base import PublicSet


@dataclass(frozen=True, kw_only=True)
class Dolly(PublicSet):
    """15 000 instructions with answers, both written by people."""

    name: ClassVar[str] = "dolly"
    title: ClassVar[str] = "Dolly 15k"
    hub: ClassVar[str] = "databricks/databricks-dolly-15k"
    licence: ClassVar[str] = "CC-BY-SA-3.0"
    version: ClassVar[str] = "2023-04"
    columns: ClassVar[Mapping[str, str]] = {"context": "input", "response": "output"}
