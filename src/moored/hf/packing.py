# SPDX-License-Identifier: Apache-2.0
"""Training without padding: rows that share a line, where the model keeps them apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moored.data.chat import IGNORED
from moored.hf.hooks import forward_takes, in_evaluation

ROWS_PER_LINE = 4
"""Fewer leave more padding, more make attention (quadratic in the line) slower: 2 to 4 were best on a CPU."""


@dataclass(frozen=True)
class SharedLines:
    """Puts a batch's encoded rows into few lines of about equal length, one behind the other.

    `position_ids` start at 0 in every row, and there is no attention mask: that is how transformers is told where rows
    begin. The loss over a batch is the one that a padded batch has.

    Args:
        pad_token_id: fills the ends of the shorter lines, each filler a row of its own that is never learnt.
        rows_per_line: rows that share a line, >= 1.
    """

    pad_token_id: int
    rows_per_line: int = ROWS_PER_LINE

    def __call__(self, rows: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Int[Tensor, "lines length"]]:
        """A batch of `input_ids`, `position_ids` and `labels`; other columns are left out.

        Args:
            rows: what `encode` returns, at least one.
        """
        lines = self._lines([len(row["input_ids"]) for row in rows])
        width = max(sum(len(rows[i]["input_ids"]) for i in line) for line in lines)
        batch: dict[str, list[list[int]]] = {"input_ids": [], "position_ids": [], "labels": []}
        for line in lines:
            held = [rows[i] for i in line]
            ids = [token for row in held for token in row["input_ids"]]
            filler = width - len(ids)
            batch["input_ids"].append(ids + [self.pad_token_id] * filler)
            batch["position_ids"].append([at for row in held for at in range(len(row["input_ids"]))] + [0] * filler)
            # The last token of a row must not learn to predict the first of the next.
            batch["labels"].append([t for row in held for t in (IGNORED, *row["labels"][1:])] + [IGNORED] * filler)
        return {name: torch.tensor(values) for name, values in batch.items()}

    def _lines(self, lengths: Sequence[int]) -> list[list[int]]:
        """Which rows share a line: the longest first, each into the line that is shortest so far."""
        lines: list[list[int]] = [[] for _ in range(math.ceil(len(lengths) / self.rows_per_line))]
        filled = [0] * len(lines)
        for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            shortest = filled.index(min(filled))
            lines[shortest].append(i)
            filled[shortest] += lengths[i]
        return lines


def keeps_rows_apart(model: Any) -> bool:
    """Whether rows that share a line neither see nor shift each other in this model: tried, not looked up.

    The second row of a line must have the same logits to the last bit whatever the first one holds, and those of the
    first one if both hold the same. Models and attention kernels that ignore `position_ids` fail here.

    Args:
        model: a causal language model, adapters included.
    """
    # Without `logits_to_keep` the trainer's loss is the model's own, with a cache, which hides where rows begin.
    if not (forward_takes(model, "position_ids") and forward_takes(model, "logits_to_keep")):
        return False
    row, other = torch.arange(4), torch.arange(4, 8)

    with torch.no_grad(), in_evaluation(model):
        first, second = _logits(model, row, row)
        behind_other = _logits(model, other, row)[1]
    return bool(torch.equal(second, behind_other)) and bool(
        torch.allclose(first, second, atol=0.1 * float(first.std()))
    )


def _logits(model: Any, first: Tensor, second: Tensor) -> list[Float[Tensor, "lines length vocabulary"]]:
    """The logits of either row, in two lines that hold both."""
    device = next(model.parameters()).device
    ids = torch.cat([first, second]).expand(2, -1).to(device)
    positions = torch.cat([torch.arange(len(row)) for row in (first, second)]).expand(2, -1).to(device)
    logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits.float()
    return list(logits.split([len(first), len(second)], dim=1))
