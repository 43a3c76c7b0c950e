# SPDX-License-Identifier: Apache-2.0
"""How close summaries come to those of people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moored.metrics.graded import Points


@dataclass(frozen=True, kw_only=True)
class Rouge(Points):
    """Mean Rouge-1 F1 of the answers, in points of 0-100 as papers print it.

    References:
        Lin 2004, "ROUGE: a package for automatic evaluation of summaries".
    """

    name: ClassVar[str] = "rouge"
    title: ClassVar[str] = "Rouge-1"
    needs: ClassVar[str] = "overlap"
    better: ClassVar[str] = "higher"
