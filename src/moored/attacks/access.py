# SPDX-License-Identifier: Apache-2.0
"""What an attacker who has the weights can look at: the model that will be tuned, and what it was before alignment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moored.data.chat import AnswerCollator, encode
from moored.data.schema import Row
from moored.digest import sha256_of
from moored.errors import CheckpointError, NeedsError, NeverSupported
from moored.hf.checkpoint import Checkpoint, finite
from moored.hf.factored import Batch, Measure, Measured, linear_modules, mean_gradient, measured
from moored.hf.hooks import body
from moored.hf.loaders import load_model, load_tokenizer, resolve_model
from moored.method import Need
from moored.ops.factored import norm, overlap, ratio
from moored.progress import Progress

Directions = Mapping[str, Float[Tensor, "o i"]]
"""A matrix for each linear layer, by module."""


@dataclass(frozen=True, kw_only=True)
class Access:
    """The models, each loaded when it is first looked at.

    Args:
        aligned: the model that the fine-tuning will start from: a folder, a hub id, or see `resolve_model`.
        base: the same model before alignment; only attacks that need it look at it.
        batch: rows per pass.
        max_length: tokens kept of a row.
        progress: told how many rows have been looked at.
    """

    aligned: str | Path
    base: str | Path | None = None
    batch: int = 8
    max_length: int = 256
    progress: Progress | None = None

    @cached_property
    def model(self) -> Any:
        """The aligned model, in fp32 and evaluation mode."""
        return load_model(self.aligned)

    @cached_property
    def tokenizer(self) -> Any:
        """Of the aligned model."""
        return load_tokenizer(self.aligned)

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """The linear layers of the aligned model, by name."""
        return linear_modules(self.model)

    @cached_property
    def safety(self) -> Directions:
        """V = aligned - base, read from the files and kept in fp32.

        Raises:
            NeedsError: no base was given.
            CheckpointError: the base has no such weight, or one of another shape.
            NeverSupported: the two are equal.
        """
        if self.base is None:
            raise NeedsError("V = aligned - base: give `base`, the model before alignment")
        aligned, base = (Checkpoint.open(resolve_model(where)) for where in (self.aligned, self.base))
        found = {}
        for name, module in self.modules.items():
            pair = [checkpoint.find(f"{name}.weight") for checkpoint in (aligned, base)]
            if None in pair or pair[0].shape != pair[1].shape:  # type: ignore[union-attr]
                raise CheckpointError(
                    f"{name} is not a weight of one shape in both {aligned.folder} and {base.folder}; give the model "
                    "that was aligned as `base`"
                )
            after, before = (finite(weight).float() for weight in pair if weight is not None)
            v = after - before
            found[name] = (v if isinstance(module, nn.Linear) else v.T).to(self.model.device)
        if not any(v.any() for v in found.values()):
            raise NeverSupported(
                f"`aligned` and `base` hold the same weights ({aligned.folder}), so that aligned - base is no direction"
            )
        return found

    def mean_gradient(self, rows: Sequence[Row]) -> Directions:
        """The mean over rows of the gradient of each row's own loss, with respect to every linear layer.

        Args:
            rows: with answers, at least one.
        """
        return mean_gradient(self.model, self.modules, self._batches(rows))

    def measured(self, rows: Sequence[Row], measures: Sequence[Measure]) -> Measured:
        """Numbers of each row's own gradient; see `hf.factored.measured`.

        Args:
            rows: with answers, at least one.
            measures: what of it.
        """
        return measured(self.model, self.modules, self._batches(rows), measures)

    def cosines(self, rows: Sequence[Row], targets: Sequence[Directions]) -> list[Float[Tensor, " rows"]]:
        """The angles between each row's gradient and targets, all linear layers together as one vector.

        Args:
            rows: with answers, at least one.
            targets: to compare with.

        Returns:
            By target; 0 where either vanishes.
        """
        measures: list[Measure] = [lambda name, delta, x: norm(delta, x)]
        measures += [_along(target) for target in targets]
        norms, *overlaps = self.measured(rows, measures).values
        lengths = [torch.stack([d.double().norm().cpu() for d in target.values()]).norm() for target in targets]
        return [
            ratio(found.sum(dim=1), norms.norm(dim=1) * length) for found, length in zip(overlaps, lengths, strict=True)
        ]

    @torch.no_grad()
    def representations(self, rows: Sequence[Row]) -> Float[Tensor, "rows width"]:
        """The last hidden state of each row at its last token.

        Args:
            rows: with answers, at least one.
        """
        found = []
        for batch in self._batches(rows):
            mask = batch["attention_mask"]
            inputs = {name: batch[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
            hidden = body(self.model)(**inputs, use_cache=False).last_hidden_state
            found.append(hidden[torch.arange(len(mask)), mask.sum(dim=1) - 1].cpu())
        return torch.cat(found)

    def record(self, needs: Iterable[Need]) -> dict[str, dict[str, str]]:
        """The files of the models that an attack looked at, with their SHA-256, for the manifest.

        Args:
            needs: which models.
        """
        folders = {str(need): Checkpoint.open(resolve_model(getattr(self, need))) for need in sorted(needs)}
        return {role: {file.name: sha256_of(file) for file in folder.files} for role, folder in folders.items()}

    def _batches(self, rows: Sequence[Row]) -> Iterator[Batch]:
        collate = AnswerCollator(self.tokenizer.pad_token_id)
        for start in range(0, len(rows), self.batch):
            few = rows[start : start + self.batch]
            yield collate([encode(self.tokenizer, row, max_length=self.max_length) for row in few])
            if self.progress:
                self.progress(start + len(few), len(rows), "rows looked at")


def _along(target: Directions) -> Measure:
    """The inner product with the target of each module."""
    return lambda name, delta, x: overlap(delta, x, target[name])
