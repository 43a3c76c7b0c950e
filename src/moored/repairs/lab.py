# SPDX-License-Identifier: Apache-2.0
"""What a repair finds out by running a model, before it scores the first layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from moored.data.chat import AnswerCollator, encode
from moored.data.schema import Row
from moored.errors import CheckpointError, NeedsError
from moored.hf.checkpoint import core
from moored.hf.loaders import load_model, load_tokenizer
from moored.hf.statistics import Sum, summed
from moored.method import Need
from moored.repairs.tuned import Tuned, TunedModel


@dataclass(frozen=True)
class Lab:
    """The tuned weights, the model that they make, and the rows that a repair may look at.

    Args:
        source: the tuned adapter or model.
        rows: by role.
        batch: rows per pass.
        max_length: tokens kept of a row.
    """

    source: Tuned
    rows: Mapping[Need, Sequence[Row]]
    batch: int = 8
    max_length: int = 512

    @cached_property
    def model(self) -> Any:
        """The tuned model, an adapter merged into it, in fp32 and evaluation mode."""
        if isinstance(self.source, TunedModel):
            return load_model(self.source.folder)
        return load_model(self._start, adapter=self.source.folder)

    @cached_property
    def aligned(self) -> Any:
        """The model that tuning started from, in fp32 and evaluation mode."""
        return load_model(self._start)

    @cached_property
    def tokenizer(self) -> Any:
        """Of the model that tuning started from."""
        return load_tokenizer(self._start)

    @property
    def _start(self) -> Path:
        if self.source.aligned is None:
            raise NeedsError(f"the method runs the model: give `aligned`, which {self.source.folder} was tuned from")
        return self.source.aligned.folder

    def batches(self, need: Need) -> Iterator[dict[str, Int[Tensor, "lines length"]]]:
        """The rows of a role in order, prompts and answers, padded.

        Args:
            need: a role of rows.
        """
        collate = AnswerCollator(self.tokenizer.pad_token_id)
        encoded = [encode(self.tokenizer, row, max_length=self.max_length) for row in self.rows[need]]
        for start in range(0, len(encoded), self.batch):
            yield collate(encoded[start : start + self.batch])

    def sums(
        self, model: nn.Module, need: Need, sums: Mapping[str, tuple[str, Sum]], *, outputs: bool = False
    ) -> dict[str, Float[Tensor, "..."]]:
        """Sums over the tokens that go into modules (or come out of them), in one pass over the rows of a role.

        Args:
            model: `model` or `aligned`.
            need: a role of rows.
            sums: by any name, the path of a module in the checkpoint (wrappers aside) and what to sum.
            outputs: what the modules give, instead of what they are given.

        Raises:
            CheckpointError: the model has no such module.
        """
        modules = {core(name): module for name, module in model.named_modules()}
        if missing := [name for name, _ in sums.values() if core(name) not in modules]:
            raise CheckpointError(f"{missing[0]} is tuned, but the model in {self._start} has no such module")
        found = {name: (modules[core(module)], of) for name, (module, of) in sums.items()}
        return summed(model, found, self.batches(need), outputs=outputs)
