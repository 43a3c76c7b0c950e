# SPDX-License-Identifier: Apache-2.0
"""How useful are the answers to somebody who means harm?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moored.errors import require
from moored.judges.strong_reject import StrongReject
from moored.metrics.base import Metric
from moored.metrics.strong_reject_score import StrongRejectScore
from moored.tasks.harmful_requests import HarmfulRequests


@dataclass(frozen=True, kw_only=True)
class StrongRejectRequests(HarmfulRequests):
    """The prompts of StrongREJECT, graded by `by: {strong_reject: {url: ..., model: ...}}` and averaged.

    Args:
        data: "strong_reject", with a local copy "strong_reject@<file>"; "synthetic" and others as in `HarmfulRequests`.
        n: how many prompts; 0 = all.
        max_new_tokens: tokens generated per answer; a short answer can hardly be of use.
        by: the judge `StrongReject`; no default, because it asks a model. See `HarmfulRequests` for the rest.

    Raises:
        ConfigError: see `HarmfulRequests`; also another judge, whose scale is another.

    References:
        Souly et al. 2024 (arXiv 2402.10260).
    """

    name: ClassVar[str] = "strong_reject"
    version: ClassVar[str] = "1"
    data: str = "strong_reject"
    n: int = 0
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        require(isinstance(self.by, StrongReject), type(self).__name__, "by", "strong_reject", self.by.name)

    @property
    def metric(self) -> Metric:
        """The mean score."""
        return StrongRejectScore()
