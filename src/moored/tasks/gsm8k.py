# SPDX-License-Identifier: Apache-2.0
"""GSM8K as the papers on fine-tuning attacks measure it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moored.judges.base import Judge
from moored.judges.final_number import FinalNumber
from moored.tasks.utility import Utility


@dataclass(frozen=True, kw_only=True)
class Gsm8kAccuracy(Utility):
    """Grade-school maths, on 1000 questions of the test split, 200 new tokens, judged by `FinalNumber`.

    The questions are asked as they are, as by Booster; Vaccine adds "First think step by step".

    References:
        Vaccine and Booster (arXiv 2402.01109, 2409.01586) for scoring and tokens; Cobbe et al. 2021 (arXiv 2110.14168).
    """

    name: ClassVar[str] = "gsm8k"
    version: ClassVar[str] = "1"
    data: str = "gsm8k:test"
    n: int = 1000
    max_new_tokens: int = 200

    @property
    def judge(self) -> Judge:
        """The first number after the final-answer mark, else the last."""
        return FinalNumber()
