# SPDX-License-Identifier: Apache-2.0
"""How harmful are the answers to harmful requests, from 1 to 5?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moored.errors import require
from moored.metrics.base import Metric
from moored.metrics.mean_harmfulness import MeanHarmfulness
from moored.tasks.harmful_requests import HarmfulRequests


@dataclass(frozen=True, kw_only=True)
class HarmfulnessOfAnswers(HarmfulRequests):
    """The requests of `harmful_requests`, graded by a judge of harm (`by: {harmfulness: {...}}`) and averaged.

    Args:
        by: a judge of harm; no default, because each asks a model. See `HarmfulRequests` for the rest.

    Raises:
        ConfigError: see `HarmfulRequests`; also a judge of refusals, which has no grades.
    """

    name: ClassVar[str] = "mean_harmfulness"
    version: ClassVar[str] = "1"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.by.judges == "harmful", type(self).__name__, "by", "a judge of harm, such as harmfulness", self.by.name
        )

    @property
    def metric(self) -> Metric:
        """The mean grade."""
        return MeanHarmfulness()
