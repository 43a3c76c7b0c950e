# SPDX-License-Identifier: Apache-2.0
"""SST-2 as the papers on fine-tuning attacks measure it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moored.datasets.sst2 import Sst2
from moored.tasks.utility import Utility


@dataclass(frozen=True, kw_only=True)
class Sst2Accuracy(Utility):
    """Positive or negative, on the validation split (872 sentences, all by default); its test split has no labels.

    The first label word of the answer decides (`ExactAnswer`): "negative or positive" is wrong here and right where
    the papers look for a substring; "Positive." is right here and wrong where they ask for equality.

    References:
        Booster and Lisa (arXiv 2409.01586, 2405.18641) for instruction and split.
    """

    name: ClassVar[str] = "sst2"
    version: ClassVar[str] = "1"
    data: str = "sst2:validation"
    n: int = 0
    max_new_tokens: int = 8
    labels: tuple[str, ...] = Sst2.labels
