# SPDX-License-Identifier: Apache-2.0
"""What a repair finds out by running a model, before it scores the first layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from moored.data.chat import IGNORED, AnswerCollator, encode, prompt_ids
from moored.data.schema import Row
from moored.errors import CheckpointError, NeedsError, NotYetSupported
from moored.hf.checkpoint import Weight, core
from moored.hf.loaders import load_model, load_tokenizer
from moored.hf.statistics import Sum, same_inputs, summed
from moored.method import Need
from moored.repairs.tuned import Tuned, TunedModel


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """The weight of a tuned module in a running model, as (o, i) however the model keeps it.

    Args:
        parameter: of the module.
        start: the aligned weight, on disk.
    """

    parameter: nn.Parameter
    start: Weight

    @property
    def value(self) -> Float[Tensor, "o i"]:
        """The weight; what is written into it, the model has."""
        return self._part(self.parameter.data)

    @property
    def grad(self) -> Float[Tensor, "o i"] | None:
        """Its gradient."""
        return None if self.parameter.grad is None else self._part(self.parameter.grad)

    def aligned(self) -> Float[Tensor, "o i"]:
        """What it was before tuning, read anew each time."""
        return self.start.read().to(self.parameter)

    def _part(self, tensor: Tensor) -> Tensor:
        part = tensor[self.start.cut]
        return part.T if self.start.transposed else part


@dataclass(frozen=True)
class Lab:
    """The tuned weights, the model that they make, and the rows that a repair may look at.

    Args:
        source: the tuned adapter or model.
        rows: by role.
        batch: rows per pass.
        max_length: tokens kept of a row.
        notes: sentences for the report, added by the repair.
        device: where the models run; None: on the GPU if there is one.
    """

    source: Tuned
    rows: Mapping[Need, Sequence[Row]]
    batch: int = 8
    max_length: int = 512
    notes: list[str] = field(default_factory=list)
    device: str | None = None

    @cached_property
    def model(self) -> Any:
        """The tuned model, an adapter merged into it, in fp32 and evaluation mode."""
        if isinstance(self.source, TunedModel):
            return load_model(self.source.folder, device=self.device)
        return load_model(self._start, adapter=self.source.folder, device=self.device)

    @cached_property
    def aligned(self) -> Any:
        """The model that tuning started from, in fp32 and evaluation mode."""
        return load_model(self._start, device=self.device)

    @cached_property
    def tokenizer(self) -> Any:
        """Of the model that tuning started from."""
        return load_tokenizer(self._start)

    def forget(self) -> None:
        """Let go of the models, which take much memory; they are loaded anew when they are next asked for."""
        for name in ("model", "aligned"):
            vars(self).pop(name, None)

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
        for start in range(0, len(self.rows[need]), self.batch):
            rows = self.rows[need][start : start + self.batch]
            yield collate([encode(self.tokenizer, row, max_length=self.max_length) for row in rows])

    def prompts(self, need: Need) -> Iterator[dict[str, Int[Tensor, "lines length"]]]:
        """The rows of a role in order, up to where their answers begin, padded; a long one loses its beginning.

        Args:
            need: a role of rows.
        """
        collate = AnswerCollator(self.tokenizer.pad_token_id)
        for start in range(0, len(self.rows[need]), self.batch):
            rows = self.rows[need][start : start + self.batch]
            asked = [prompt_ids(self.tokenizer, row.prompt)[-self.max_length :] for row in rows]
            yield collate(
                [{"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [IGNORED] * len(ids)} for ids in asked]
            )

    def matrices(self, model: nn.Module) -> dict[str, Matrix]:
        """The weights of the tuned modules in a model, by module.

        Args:
            model: `model` or `aligned`.

        Raises:
            NotYetSupported: the model keeps a weight in another form than the files.
        """
        parameters = {core(name): parameter for name, parameter in model.named_parameters()}
        found = {}
        for name in self.source.modules:
            start = self.source.layer(name).aligned
            parameter = None if start is None else parameters.get(core(start.key))
            if start is None or parameter is None or tuple(parameter.shape) != start.shape:
                raise NotYetSupported(
                    f"{name} is no weight of its own in a running {type(model).__name__}, so it cannot be edited there"
                )
            found[name] = Matrix(parameter=parameter, start=start)
        return found

    def sums(
        self,
        model: nn.Module,
        need: Need,
        sums: Mapping[str, tuple[str, Sum]],
        *,
        outputs: bool = False,
        answers: bool = False,
    ) -> dict[str, Float[Tensor, "..."]]:
        """Sums over the tokens that go into modules (or come out of them), in one pass over the rows of a role.

        Args:
            model: `model` or `aligned`.
            need: a role of rows.
            sums: by any name, the path of a module in the checkpoint (wrappers aside) and what to sum.
            outputs: what the modules give, instead of what they are given.
            answers: at the tokens of the answers only.

        Raises:
            CheckpointError: the model has no such module.
        """
        modules = self.parts(model, [module for module, _ in sums.values()])
        found = {name: (modules[module], of) for name, (module, of) in sums.items()}
        return summed(model, found, self.batches(need), outputs=outputs, answers=answers)

    def same_inputs(self, model: nn.Module, need: Need, modules: Sequence[str]) -> dict[str, str]:
        """By module, the first of those that are given the very same tensors; found with a few tokens of the first row.

        Args:
            model: `model` or `aligned`.
            need: a role of rows.
            modules: paths in the checkpoint.

        Raises:
            CheckpointError: the model has no such module.
        """
        few = {name: tokens[:1, :8] for name, tokens in next(self.batches(need)).items()}
        return same_inputs(model, self.parts(model, modules), few)

    def parts(self, model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
        """Modules of a model by their paths in the checkpoint, wrappers aside.

        Args:
            model: `model` or `aligned`.
            names: for example those of `source.modules`.

        Raises:
            CheckpointError: the model has no such module.
        """
        modules = {core(name): module for name, module in model.named_modules()}
        if missing := [name for name in names if core(name) not in modules]:
            raise CheckpointError(f"{missing[0]} is tuned, but the model in {self._start} has no such module")
        return {name: modules[core(name)] for name in names}
