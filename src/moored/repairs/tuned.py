# SPDX-License-Identifier: Apache-2.0
"""What a repair can read and write: a PEFT adapter, a full checkpoint, and an adapter that is written as one.

Each gives one `Layer` at a time, matched with the other models by module name, and says how an edited update is
stored. Everything that does not fit is refused before anything is computed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from moored.errors import CheckpointError, ConfigError, NeedsError, NeverSupported, NotYetSupported
from moored.hf.adapters import CONFIG, Adapter, is_adapter, read_adapter
from moored.hf.adapters import WEIGHTS as ADAPTER_WEIGHTS
from moored.hf.checkpoint import EXTRAS, Checkpoint, Cut, Weight, core, finite, local_folder, rows_of, weights_of
from moored.hf.fused import Split, experts_in_out, experts_of, is_experts, model_config, pieces
from moored.method import Need
from moored.repairs.base import Delta, Layer

_CONV1D_MODELS = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}
"""Model types whose linear layers are stored as (in, out)."""
_NOT_LINEAR = {"wte", "wpe", "lm_head", "shared", "score", "classifier", "embed_out"}
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight")
"""What a head is tied to, where a model's files have no `lm_head`."""


Stored = Mapping[str, Float[Tensor, "..."]]
"""Tensors by their keys in the files."""


@dataclass(frozen=True, kw_only=True)
class Tuned(ABC):
    """What tuning made.

    Args:
        folder: where it is.
        aligned: the model that tuning started from, None if not given.
        base: the model before alignment, None if not given.
        others: further models that started from `aligned`, by role.
        modules: full paths, in the order of the files.
        untouched: trained tensors that no repair here edits.
    """

    writes_all: ClassVar[bool] = False
    """Whether the modules that stay are written too, because the copied files do not hold them."""

    folder: Path
    aligned: Checkpoint | None
    base: Checkpoint | None
    others: Mapping[Need, Tuned] = field(default_factory=dict, repr=False)
    modules: tuple[str, ...] = field(repr=False)
    untouched: tuple[str, ...] = ()

    @property
    @abstractmethod
    def files(self) -> list[Path]:
        """Configuration and weights that were read."""

    @property
    @abstractmethod
    def shards(self) -> list[Path]:
        """The weight files that the output has copies of."""

    @property
    def extras(self) -> list[Path]:
        """Small files that belong beside the weights."""
        return _extras(self.folder)

    @abstractmethod
    def weight(self, module: str) -> Weight:
        """The stored tensor that an edit replaces, or the first of them."""

    @abstractmethod
    def cuts(self, module: str) -> Mapping[str, Cut]:
        """The module's parts of stored tensors, by their keys."""

    @abstractmethod
    def layer(self, module: str) -> Layer:
        """One layer, its update in memory and its models unread."""

    @abstractmethod
    def unedited(self, layer: Layer) -> Stored:
        """What the files hold for a layer that is left alone."""

    @abstractmethod
    def stored(self, layer: Layer, delta: Delta) -> Stored:
        """What the files hold for `layer` once its update is `delta`, in their own types."""

    @abstractmethod
    def held(self, layer: Layer, stored: Stored) -> Delta:
        """The update that stored tensors stand for: the reverse of `stored`, rounding included."""

    def copied(self) -> Stored:
        """Tensors that the copies must hold beside those of the modules."""
        return {}

    @abstractmethod
    def reverted(self) -> Stored:
        """The trained tensors that no repair edits, as they were before tuning."""

    def _start(self, weight: Weight) -> Weight:
        """What stands in the aligned model in the place of a trained tensor."""
        if self.aligned is None:
            raise NeedsError(f"{weight.key} was trained and is to be reverted: give `aligned`")
        name = weight.key.replace(".base_layer.", ".")
        start = self.aligned.find(name)
        if start is None and core(name) == "lm_head.weight":  # tied, so that files hold the embeddings alone
            start = next((found for key in _EMBEDDINGS if (found := self.aligned.find(key)) is not None), None)
        if start is None or start.shape != weight.shape:
            raise NotYetSupported(f"{weight.key} in {self.folder} has no counterpart in {self.aligned.folder}")
        return start

    @cached_property
    def _by_core(self) -> dict[str, str]:
        """Modules by their names without wrappers."""
        return {core(module): module for module in self.modules}

    def _others(self, module: str) -> dict[Need, Callable[[], Delta]]:
        """Readers of the other models' updates of a module."""
        found = dict[Need, Callable[[], Delta]]()
        for need, other in self.others.items():
            if core(module) in other._by_core:
                found[need] = partial(_update, other, other._by_core[core(module)])
        return found


@dataclass(frozen=True, kw_only=True)
class TunedAdapter(Tuned):
    """A LoRA adapter; an edit replaces lora_B, and lora_A where the rank changes."""

    adapter: Adapter

    @property
    def files(self) -> list[Path]:
        """adapter_config.json and adapter_model.safetensors."""
        return self.adapter.files

    @property
    def shards(self) -> list[Path]:
        """adapter_model.safetensors."""
        return [file for file in self.files if file.suffix == ".safetensors"]

    def weight(self, module: str) -> Weight:
        """lora_B."""
        return self.adapter.modules[module].b

    def cuts(self, module: str) -> Mapping[str, Cut]:
        """Of B and of A."""
        part = self.adapter.modules[module]
        return {part.b.key: part.b.cut, part.a.key: part.a.cut}

    def layer(self, module: str) -> Layer:
        """The factors, with the weights that they are added to."""
        part = self.adapter.modules[module]
        b, a = part.factors()
        return Layer(
            module=module,
            delta=Delta(b=b, a=a, scale=part.scale),
            aligned=part.within(self.aligned),
            base=part.within(self.base),
            others=self._others(module),
        )

    def unedited(self, layer: Layer) -> Stored:
        """B."""
        return {self.adapter.modules[layer.module].b.key: layer.delta.b}

    def stored(self, layer: Layer, delta: Delta) -> Stored:
        """B in the adapter's type, and A where it is another; the module keeps its scale s."""
        if delta.a is None:
            raise TypeError(f"{layer.module}: a dense update does not fit into an adapter")
        part, own = self.adapter.modules[layer.module], layer.delta
        if _same(delta.a, own.a):
            return {part.b.key: delta.b.to(own.b.dtype)}
        b = delta.b * (delta.scale / own.scale)
        return {part.b.key: b.to(part.b.torch_dtype), part.a.key: delta.a.to(part.a.torch_dtype)}

    def reverted(self) -> Stored:
        """Whole trained tensors from the aligned model; adapters of embeddings become zero."""
        weights = weights_of(self.folder / ADAPTER_WEIGHTS)
        found = {}
        for key in self.untouched:
            if "lora_embedding_" in key:
                found[key] = torch.zeros_like(weights[key].read())
            else:
                found[key] = finite(self._start(weights[key])).to(weights[key].torch_dtype)
        return found

    def held(self, layer: Layer, stored: Stored) -> Delta:
        """The stored factors with the module's scale."""
        part = self.adapter.modules[layer.module]
        return replace(layer.delta, b=stored[part.b.key], a=stored.get(part.a.key, layer.delta.a))


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

    @property
    def shards(self) -> list[Path]:
        """All of them."""
        return self.checkpoint.shards

    def weight(self, module: str) -> Weight:
        """The tuned weight."""
        return self.pairs[module][0]

    def cuts(self, module: str) -> Mapping[str, Cut]:
        """Of the weight."""
        weight = self.weight(module)
        return {weight.key: weight.cut}

    def layer(self, module: str) -> Layer:
        """The dense update; vectors count as one column."""
        tuned, aligned = self.pairs[module]
        delta = Delta(b=_matrix(finite(tuned).float() - finite(aligned).float()))
        base = _find(self.base, aligned.key, aligned)
        return Layer(module=module, delta=delta, aligned=aligned, base=base, others=self._others(module))

    def unedited(self, layer: Layer) -> Stored:
        """The tuned weight."""
        weight = self.pairs[layer.module][0]
        return {weight.key: weight.read().T if weight.transposed else weight.read()}

    def stored(self, layer: Layer, delta: Delta) -> Stored:
        """W_aligned + delta in the checkpoint's type; where the update stays, so does every bit of the weight."""
        weight, aligned = self.pairs[layer.module]
        new, old = _added(aligned, delta, weight), self.unedited(layer)[weight.key]
        stays = (delta.dense() == layer.delta.b).reshape(weight.oriented)
        return {weight.key: torch.where(stays.T if weight.transposed else stays, old, new)}

    def reverted(self) -> Stored:
        """Norms, biases and embeddings that tuning has changed, from the aligned model."""
        trained = {key: self.checkpoint.weights[key] for key in self.untouched}
        return {key: finite(self._start(weight)).to(weight.torch_dtype) for key, weight in trained.items()}

    def held(self, layer: Layer, stored: Stored) -> Delta:
        """The difference stored - W_aligned."""
        weight, aligned = self.pairs[layer.module]
        return _difference(stored[weight.key], aligned, weight)


@dataclass(frozen=True, kw_only=True)
class MergedAdapter(Tuned):
    """An adapter that is written as a full checkpoint: every adapted weight becomes W_aligned + its update.

    Takes DoRA too, whose update is m / ||W + s B A||, row by row, times W + s B A, less W.
    """

    writes_all: ClassVar[bool] = True

    adapter: Adapter
    model: Checkpoint
    """The aligned model."""

    @property
    def files(self) -> list[Path]:
        """The adapter's."""
        return self.adapter.files

    @property
    def shards(self) -> list[Path]:
        """Those of the aligned model."""
        return self.model.shards

    @property
    def extras(self) -> list[Path]:
        """Those of the aligned model, and what the adapter has beside its configuration."""
        return [*_extras(self.model.folder), *(f for f in _extras(self.folder) if f.name != CONFIG)]

    def weight(self, module: str) -> Weight:
        """The aligned weight."""
        weight = self.adapter.modules[module].within(self.model)
        if weight is None:  # `open_tuned` has looked
            raise CheckpointError(f"{module} is missing in {self.model.folder}")
        return weight

    def cuts(self, module: str) -> Mapping[str, Cut]:
        """Of the weight."""
        weight = self.weight(module)
        return {weight.key: weight.cut}

    def layer(self, module: str) -> Layer:
        """The factors, or the dense update of DoRA."""
        part, aligned = self.adapter.modules[module], self.weight(module)
        b, a = part.factors()
        delta = Delta(b=b, a=a, scale=part.scale)
        if part.magnitude is not None:
            start = finite(aligned).float()
            direction = start + delta.dense().float()
            rows = finite(part.magnitude).float().reshape(-1, 1) / direction.norm(dim=1, keepdim=True)
            delta = Delta(b=rows * direction - start)
        base = part.within(self.base)
        return Layer(module=module, delta=delta, aligned=aligned, base=base, others=self._others(module))

    def unedited(self, layer: Layer) -> Stored:
        """The merged weight."""
        return self.stored(layer, layer.delta)

    def stored(self, layer: Layer, delta: Delta) -> Stored:
        """W_aligned + delta in the aligned model's type."""
        weight = self.weight(layer.module)
        return {weight.key: _added(weight, delta, weight)}

    def held(self, layer: Layer, stored: Stored) -> Delta:
        """The difference stored - W_aligned."""
        weight = self.weight(layer.module)
        return _difference(stored[weight.key], weight, weight)

    def copied(self) -> Stored:
        """What was trained as a whole (`modules_to_save`, biases), by its key in the aligned model."""
        found: dict[str, Float[Tensor, "..."]] = {}
        for key, weight in weights_of(self.folder / ADAPTER_WEIGHTS).items():
            if key in self.untouched:
                start = self._start(weight)
                stored = finite(weight).to(start.torch_dtype)
                if start.key in found and not torch.equal(found[start.key], stored):
                    raise NeverSupported(
                        f"{key} in {self.folder} is not what else was trained in the place of {start.key}: the aligned "
                        "model ties head and embeddings into one tensor; repair without merging, or with `revert`"
                    )
                found[start.key] = stored
        return found

    def reverted(self) -> Stored:
        """Nothing is copied, so that what the aligned model has stays."""
        return {}


def open_tuned(
    where: str | Path,
    *,
    aligned: Checkpoint | None,
    base: Checkpoint | None = None,
    others: Mapping[Need, Tuned] | None = None,
    every_tensor: bool = False,
    merge: bool = False,
    split: Split = None,
) -> Tuned:
    """Open an adapter or a full checkpoint and check it against the models.

    Args:
        where: folder or hub id.
        aligned: the model that tuning started from.
        base: the model before alignment.
        others: further models that started from `aligned`, by role.
        every_tensor: of a full checkpoint, take norms, biases and embeddings too.
        merge: write an adapter as a full checkpoint.
        split: take fused attention weights apart.

    Raises:
        ConfigError: `split` fits no weight.
        CheckpointError: broken files, or a model that the update does not belong to.
        NeedsError: a full checkpoint without `aligned`.
        UnsupportedError: a kind of adapter where B A is not the update.
    """
    folder, others = local_folder(where), others or {}
    if not is_adapter(folder):
        return _open_model(folder, aligned, base, others, every_tensor, split)
    adapter = read_adapter(folder, merge=merge, aligned=aligned)
    for model in (aligned, base):
        _check(adapter.shapes, model)
    config = {} if aligned is None else model_config(aligned.folder)
    parts = _split({name: module.shape[0] for name, module in adapter.modules.items()}, split, config)
    modules = {}
    for name, module in adapter.modules.items():
        for part in [module.rows(*rows) for rows in parts.get(name, ())] or [module]:
            modules[part.name] = part
    adapter = replace(adapter, modules=modules)
    known: dict[str, Any] = {"folder": folder, "aligned": aligned, "base": base, "others": others}
    known |= {"modules": tuple(adapter.modules), "untouched": adapter.untouched, "adapter": adapter}
    if not merge:
        return TunedAdapter(**known)
    if aligned is None:
        raise NeedsError(f"{folder} is to be merged: give `aligned`, the model that it was trained on")
    return MergedAdapter(**known, model=aligned)


def _open_model(
    folder: Path,
    aligned: Checkpoint | None,
    base: Checkpoint | None,
    others: Mapping[Need, Tuned],
    every_tensor: bool,
    split: Split,
) -> TunedModel:
    checkpoint = Checkpoint.open(folder)
    if aligned is None:
        raise NeedsError(f"{folder} is a full checkpoint: its update is tuned - aligned, so give `aligned`")
    config = model_config(folder)
    in_out = config.get("model_type") in _CONV1D_MODELS
    chosen = {
        key: replace(weight, transposed=in_out and _linear(key, weight))
        for key, weight in checkpoint.weights.items()
        if _linear(key, weight) or is_experts(key, weight) or (every_tensor and weight.floating)
    }
    for model in (aligned, base):
        _check({key: weight.shape for key, weight in chosen.items()}, model)
    layers: dict[str, Weight] = {}
    for key, weight in chosen.items():
        stacked = is_experts(key, weight)
        layers |= experts_of(weight, experts_in_out(config)) if stacked else {key.removesuffix(".weight"): weight}
    parts = _split({name: weight.oriented[0] for name, weight in layers.items() if weight.shape}, split, config)
    pairs = {}
    for name, weight in layers.items():
        cuts = {f"{name}[{a}:{b}]": rows_of(weight.cut, weight.transposed, a, b) for a, b in parts.get(name, ())}
        for part, cut in (cuts or {name: weight.cut}).items():
            own = replace(weight, cut=cut)
            start = _find(aligned, weight.key, own)
            if start is not None:
                pairs[part] = (own, start)
    rest = (weight for key, weight in checkpoint.weights.items() if key not in chosen)
    return TunedModel(
        folder=folder,
        aligned=aligned,
        base=base,
        others=others,
        modules=tuple(pairs),
        untouched=tuple(weight.key for weight in rest if _differs(weight, aligned)),
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
            _ = weight.torch_dtype  # refuses quantised weights, which are packed into other shapes
            wrong.append(f"{key} is {weight.shape} and not {shape}")
    if wrong:
        rest = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(f"{model.folder} is not the model of this update: {'; '.join(wrong[:3])}{rest}")


def _update(tuned: Tuned, module: str) -> Delta:
    return tuned.layer(module).delta


def _same(a: Float[Tensor, "..."], b: Float[Tensor, "..."] | None) -> bool:
    """Whether two tensors are equal, types too: an edit made while scoring has another reading of the same factor."""
    return a is b or (b is not None and a.dtype == b.dtype and torch.equal(a, b))


def _find(model: Checkpoint | None, key: str, like: Weight) -> Weight | None:
    """The same part of another model."""
    weight = None if model is None else model.find(key)
    return None if weight is None else replace(weight, transposed=like.transposed, cut=like.cut)


def _split(outputs: Mapping[str, int], split: Split, config: Mapping[str, Any]) -> dict[str, list[tuple[int, int]]]:
    """Rows of the layers in fused weights, by module."""
    found = {module: rows for module, o in outputs.items() if (rows := pieces(module, o, split, config))}
    if split not in (None, "auto") and not found:
        raise ConfigError(f"`split` is {split}, but no fused attention weight is tuned")
    return found


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


def _added(start: Weight, delta: Delta, like: Weight) -> Float[Tensor, "..."]:
    """W_start + delta, stored as `like` is."""
    value = _matrix(start.read().float()) + delta.dense()
    value = value.to(like.torch_dtype).reshape(like.oriented)
    return value.T if like.transposed else value


def _difference(stored: Float[Tensor, "..."], start: Weight, like: Weight) -> Delta:
    """The reverse of `_added`."""
    value = stored.T if like.transposed else stored
    return Delta(b=_matrix(value.float() - start.read().float()))


def _extras(folder: Path) -> list[Path]:
    return [f for f in sorted(folder.iterdir()) if f.suffix in EXTRAS and f.name != "moored.json"]


def _matrix(tensor: Float[Tensor, "..."]) -> Float[Tensor, "o i"]:
    return tensor if tensor.dim() == 2 else tensor.reshape(-1, 1)
