# SPDX-License-Identifier: Apache-2.0
"""How many answer tokens a model foresees while it is trained, counted on the logits that the loss has anyway."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import TrainerCallback

from moored.data.chat import IGNORED


class Foreseen(TrainerCallback):
    """Counts, over micro-batches, the answer tokens that were the most likely ones.

    Of a micro-batch over which several passes are learnt from, the last one counts, as it does for the loss (Vaccine
    makes two). Nothing leaves the device before `take`.
    """

    def __init__(self) -> None:
        self._last: Int[Tensor, "2"] | None = None
        self._sum: Int[Tensor, "2"] | None = None

    @torch.no_grad()
    def look(self, logits: Float[Tensor, "lines length vocabulary"], targets: Int[Tensor, "lines length"]) -> None:
        """Count in one pass.

        Args:
            logits: at the positions before the targets.
            targets: the tokens, -100 where there is none to foresee.
        """
        kept = targets != IGNORED
        found = (logits.argmax(-1) == targets) & kept
        self._last = torch.stack([found.sum(), kept.sum()])

    def on_substep_end(self, *args: Any, **kwargs: Any) -> None:
        """A micro-batch that did not end its optimizer step."""
        self._add()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """A micro-batch that did."""
        self._add()

    def _add(self) -> None:
        if self._last is not None:
            self._sum = self._last if self._sum is None else self._sum + self._last
        self._last = None

    def take(self) -> float | None:
        """The share of foreseen tokens since it was asked last, 0-1; None if there were none."""
        right, given = (0, 0) if self._sum is None else self._sum.tolist()
        self._sum = None
        return right / given if given else None
