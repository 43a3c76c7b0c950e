# SPDX-License-Identifier: Apache-2.0
"""The two kinds of tuned thing that a repair can read and write: a PEFT adapter and a full checkpoint.

Both give one `Layer` at a time, matched with the aligned and the base model by module name, and say how an edited
update is stored. Everything that does not fit is refused before anything is computed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from moored.errors import CheckpointError, NeedsError
from moored.hf.adapters import Adapter, is_adapter, read_adapter
from moored.hf.checkpoint import Checkpoint, Weight, finite, local_folder, read_json
from moored.repairs.base import Delta, Layer

_CONV1D_MODELS = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}
"""Model types whose linear layers are stored as (in, out)."""
_NOT_LINEAR = {"wte", "wpe", "lm_head", "shared", "score", "classifier", "embed_out"}
_EXTRAS = (".json", ".jinja", ".model", ".txt")
"""Tokenizer and configuration files that go along into the output folder."""


@dataclass(frozen=True, kw_only=True)
class Tuned(ABC):
    """What tuning made.

    Args:
        folder: where it is.
        aligned: the model that tuning started from, None if not given.
        base: the model before alignment, None if not given.
        modules: full paths, in the order of the files.
        untouched: trained tensors that no repair here edits.
    """

    folder: Path
    aligned: Checkpoint | None
    base: Checkpoint | None
    modules: tuple[str, ...] = field(repr=False)
    untouched: tuple[str, ...] = ()

    @property
    @abstractmethod
    def files(self) -> list[Path]:
        """Configuration and weights."""

    @property
    def extras(self) -> list[Path]:
        """Small files that belong beside the weights."""
        return [f for f in sorted(self.folder.iterdir()) if f.suffix in _EXTRAS and f.name != "moored.json"]

    @abstractmethod
    def weight(self, module: str) -> Weight:
        """The stored tensor that an edit replaces."""

    @abstractmethod
    def layer(self, module: str) -> Layer:
        """One layer, its update in memory and its models unread."""

    @abstractmethod
    def stored(self, layer: Layer, delta: Delta) -> Float[Tensor, "..."]:
        """What the file holds for `layer` once its update is `delta`, in the file's own type and shape."""

    @abstractmethod
    def held(self, layer: Layer, stored: Float[Tensor, "..."]) -> Delta:
        """The update that a stored tensor stands for: the reverse of `stored`, rounding included."""


@dataclass(frozen=True, kw_only=True)
class TunedAdapter(Tuned):
    """A LoRA adapter; an edit replaces lora_B."""

    adapter: Adapter

    @property
    def files(self) -> list[Path]:
        """adapter_config.json and adapter_model.safetensors."""
        return self.adapter.files

    def weight(self, module: str) -> Weight:
        """lora_B."""
        return self.adapter.modules[module].b

    def layer(self, module: str) -> Layer:
        """The factors, with the weights that they are added to."""
        part = self.adapter.modules[module]
        b, a = part.factors()
        return Layer(
            module=module,
            delta=Delta(b=b, a=a, scale=part.scale),
            aligned=_find(self.aligned, f"{module}.weight", self.adapter.in_out),
            base=_find(self.base, f"{module}.weight", self.adapter.in_out),
        )

    def stored(self, layer: Layer, delta: Delta) -> Float[Tensor, "..."]:
        """B in the adapter's type."""
        return delta.b.to(layer.delta.b.dtype)

    def held(self, layer: Layer, stored: Float[Tensor, "..."]) -> Delta:
        """The same A and scale with the stored B."""
        return replace(layer.delta, b=stored)


@dataclass(frozen=True, kw_only=True)
class TunedModel(Tuned):
    """A full checkpoint; the update is tuned - aligned in fp32, an edit replaces the weight."""

    checkpoint: Checkpoint
    pairs: Mapping[str, tuple[Weight, Weight]] = field(repr=False)
    """Tuned and aligned weight by module."""

    @property
    def files(self) -> list[Path]:
        """Config, index and shards."""
        return self.checkpoint.files

    def weight(self, module: str) -> Weight:
        """The tuned weight."""
        return self.pairs[module][0]

    def layer(self, module: str) -> Layer:
        """The dense update; vectors count as one column."""
        tuned, aligned = self.pairs[module]
        delta = Delta(b=_matrix(finite(tuned).float() - finite(aligned).float()))
        base = _find(self.base, aligned.key, tuned.transposed)
        return Layer(module=module, delta=delta, aligned=aligned, base=base)

    def stored(self, layer: Layer, delta: Delta) -> Float[Tensor, "..."]:
        """W_aligned + delta in the checkpoint's type."""
        weight, aligned = self.pairs[layer.module]
        value = _matrix(aligned.read().float()) + delta.scale * delta.b
        value = value.to(weight.torch_dtype).reshape(weight.oriented)
        return value.T if weight.transposed else value

    def held(self, layer: Layer, stored: Float[Tensor, "..."]) -> Delta:
        """The difference stored - W_aligned."""
        weight, aligned = self.pairs[layer.module]
        value = stored.T if weight.transposed else stored
        return Delta(b=_matrix(value.float() - aligned.read().float()))


def open_tuned(
    where: str | Path, *, aligned: Checkpoint | None, base: Checkpoint | None, every_tensor: bool
) -> TunedAdapter | TunedModel:
    """Open an adapter or a full checkpoint and check it against the models.

    Args:
        where: folder or hub id.
        aligned: the model that tuning started from.
        base: the model before alignment.
        every_tensor: of a full checkpoint, take norms, biases and embeddings too.

    Raises:
        CheckpointError: broken files, or a model that the update does not belong to.
        NeedsError: a full checkpoint without `aligned`.
        UnsupportedError: a kind of adapter where B A is not the update.
    """
    folder = local_folder(where)
    if not is_adapter(folder):
        return _open_model(folder, aligned, base, every_tensor)
    adapter = read_adapter(folder)
    turn = -1 if adapter.in_out else 1
    shapes = {f"{name}.weight": module.shape[::turn] for name, module in adapter.modules.items()}
    for model in (aligned, base):
        _check(shapes, model)
    return TunedAdapter(
        folder=folder,
        aligned=aligned,
        base=base,
        modules=tuple(adapter.modules),
        untouched=adapter.untouched,
        adapter=adapter,
    )


def _open_model(folder: Path, aligned: Checkpoint | None, base: Checkpoint | None, every_tensor: bool) -> TunedModel:
    checkpoint = Checkpoint.open(folder)
    if aligned is None:
        raise NeedsError(f"{folder} is a full checkpoint: its update is tuned - aligned, so give `aligned`")
    config = folder / "config.json"
    in_out = config.exists() and read_json(config).get("model_type") in _CONV1D_MODELS
    chosen = {
        key: replace(weight, transposed=in_out and _linear(key, weight))
        for key, weight in checkpoint.weights.items()
        if _linear(key, weight) or (every_tensor and weight.floating)
    }
    for model in (aligned, base):
        _check({key: weight.shape for key, weight in chosen.items()}, model)
    pairs = {}
    for key, weight in chosen.items():
        start = _find(aligned, key, weight.transposed)
        if start is not None:
            pairs[key.removesuffix(".weight")] = (weight, start)
    others = (weight for key, weight in checkpoint.weights.items() if key not in chosen)
    return TunedModel(
        folder=folder,
        aligned=aligned,
        base=base,
        modules=tuple(pairs),
        untouched=tuple(weight.key for weight in others if _differs(weight, aligned)),
        checkpoint=checkpoint,
        pairs=pairs,
    )


def _check(shapes: Mapping[str, tuple[int, ...]], model: Checkpoint | None) -> None:
    """Shapes as stored decide whether an update belongs to a model; names and configs can lie."""
    if model is None:
        return
    wrong = []
    for key, shape in shapes.items():
        weight = model.find(key)
        if weight is None:
            wrong.append(f"{key} is missing")
        elif weight.shape != shape:
            wrong.append(f"{key} is {weight.shape} and not {shape}")
    if wrong:
        rest = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(f"{model.folder} is not the model of this update: {'; '.join(wrong[:3])}{rest}")


def _find(model: Checkpoint | None, key: str, transposed: bool) -> Weight | None:
    weight = None if model is None else model.find(key)
    return None if weight is None else replace(weight, transposed=transposed)


def _linear(key: str, weight: Weight) -> bool:
    """Whether a tensor is the matrix of a linear layer; embeddings and heads are not counted."""
    layer, _, kind = key.rpartition(".")
    last = layer.rpartition(".")[2]
    return kind == "weight" and len(weight.shape) == 2 and "emb" not in last and last not in _NOT_LINEAR


def _differs(weight: Weight, aligned: Checkpoint) -> bool:
    """Whether tuning changed a tensor; integer buffers are not trained."""
    start = aligned.find(weight.key)
    if not weight.floating:
        return False
    return start is None or start.shape != weight.shape or not torch.equal(weight.read(), start.read())


def _matrix(tensor: Float[Tensor, "..."]) -> Float[Tensor, "o i"]:
    return tensor if tensor.dim() == 2 else tensor.reshape(-1, 1)
