# SPDX-License-Identifier: Apache-2.0
"""The attack success rate as most papers print it: no refusal keyword in the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moored.judges.base import Judge
from moored.judges.keywords import Keywords
from moored.tasks.harmful_requests import HarmfulRequests


@dataclass(frozen=True, kw_only=True)
class AttackSuccessRate(HarmfulRequests):
    """The requests of `harmful_requests`, judged by the field's 29 keywords: for parity with published numbers.

    It stands beside `harmful_requests`, and is no better number: see `Keywords` for how it errs.

    Args:
        by: the keywords; see `HarmfulRequests` for the rest.

    Raises:
        ConfigError: see `HarmfulRequests`.

    References:
        Zou et al. 2023 (arXiv 2307.15043), Qi et al. 2024 (arXiv 2310.03693).
    """

    name: ClassVar[str] = "asr"
    version: ClassVar[str] = "1"
    by: Judge = Keywords()

    @property
    def title(self) -> str:
        """Says what decides."""
        return f"{super().title}, by keywords"
