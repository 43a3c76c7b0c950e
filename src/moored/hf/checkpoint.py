# SPDX-License-Identifier: Apache-2.0
"""A read-only view over the safetensors files of a model folder: no model object, no tensor before it is asked for."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from moored.errors import CheckpointError, NotYetSupported
from moored.hf.ledger import Ledger

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

PREFIXES = (
    "base_model.model.",
    "model.language_model.",
    "language_model.model.",
    "language_model.",
    "model.",
    "transformer.",
)
"""Wrappers that put the same decoder under another name: PEFT, vision-language models, headless checkpoints, GPT-2."""

Cut = tuple[int | slice, ...]
"""An index into a stored tensor: an expert of three axes, rows of a fused matrix, every E-th column."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


EXTRAS = (".json", ".jinja", ".model", ".txt")
"""Configuration, tokenizer and chat template: small files that belong beside weights."""


def local_folder(where: str | Path) -> Path:
    """The folder itself, or a hub id's snapshot; the hub is asked only when no such local path exists.

    Args:
        where: a folder, or "owner/name" on the Hugging Face hub.

    Raises:
        CheckpointError: neither exists.
    """
    path = Path(where)
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{path} is a file; give the folder that holds it")
    if not isinstance(where, str) or not _HUB_ID.fullmatch(where):
        raise CheckpointError(f"{path} does not exist; give a local folder or a hub id (owner/name)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(where, allow_patterns=[f"*{suffix}" for suffix in (".safetensors", *EXTRAS)]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{where} is no local folder, and the hub does not give it ({type(error).__name__})"
        ) from error


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: not there, not JSON, or not an object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"cannot read {file}: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} must hold a JSON object; got {type(content).__name__}")
    return content


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One tensor in a file, not yet read.

    Args:
        file: the safetensors file.
        key: its name there.
        shape: as stored.
        dtype: as stored, in safetensors' words ("BF16").
        start: its first byte in the file.
        transposed: stored as (in, out), as GPT-2's Conv1D does; `read` turns it to (out, in).
        cut: the part of the tensor that is meant, as an index into what is stored; () is all of it.
        ledger: is told of every read.
    """

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str
    start: int
    transposed: bool = False
    cut: Cut = ()
    ledger: Ledger | None = field(default=None, repr=False, compare=False)

    @property
    def oriented(self) -> tuple[int, ...]:
        """The shape that `read` returns."""
        shape = torch.empty(self.shape, device="meta")[self.cut].shape
        return tuple(shape[::-1] if self.transposed else shape)

    @property
    def floating(self) -> bool:
        """Whether it is stored in a floating type that is wide enough to subtract in."""
        return self.dtype in _TORCH_DTYPES

    @property
    def nbytes(self) -> int:
        """Size on disk, of the part that is meant."""
        return self.torch_dtype.itemsize * math.prod(self.oriented)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type that `read` returns.

        Raises:
            NotYetSupported: a quantised or integer tensor, whose rounding would drown the safety vector.
        """
        if not self.floating:
            raise NotYetSupported(
                f"{self.key} in {self.file} is stored as {self.dtype}; give the checkpoint before quantisation"
            )
        return _TORCH_DTYPES[self.dtype]

    def read(self) -> Float[Tensor, ...]:
        """The tensor as a memory-mapped view: pages are read when touched and can be evicted; do not write to it.

        Raises:
            CheckpointError: the file can no longer be read.
            NotYetSupported: quantised.
        """
        size = self.torch_dtype.itemsize * math.prod(self.shape)
        if self.ledger:
            self.ledger.tensor(self.file, self.key, self.start, size)
        with _opened(self.file) as shard:
            tensor: Tensor = shard.get_tensor(self.key)[self.cut]
        return tensor.T if self.transposed else tensor


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """All weights of a model folder by name.

    Args:
        folder: where they are.
        weights: by key, in the order in which the files hold them.
    """

    folder: Path
    weights: Mapping[str, Weight] = field(repr=False)

    @classmethod
    def open(cls, where: str | Path, *, ledger: Ledger | None = None) -> Checkpoint:
        """Read the headers of `model.safetensors` or of every shard of `model.safetensors.index.json`.

        Args:
            where: a folder or hub id.
            ledger: is told of every tensor that is read.

        Raises:
            CheckpointError: missing folder or shard, truncated or corrupt file, keys missing from their shard, or no
                safetensors at all.
        """
        folder = local_folder(where)
        if (folder / INDEX).exists():
            weights = _sharded(folder)
        elif (folder / WEIGHTS).exists():
            weights = weights_of(folder / WEIGHTS)
        else:
            raise CheckpointError(_why_none(folder))
        return cls(folder=folder, weights={key: replace(w, ledger=ledger) for key, w in weights.items()})

    @cached_property
    def _by_core(self) -> dict[str, list[str]]:
        """Names by what is left of them without wrappers."""
        found = defaultdict(list)
        for name in self.weights:
            found[core(name)].append(name)
        return dict(found)

    @property
    def files(self) -> list[Path]:
        """The files that say what the weights are: config, index, shards."""
        return self.headers + self.shards

    @property
    def headers(self) -> list[Path]:
        """The files that say what the weights are, but hold none: config and index."""
        return [file for name in ("config.json", INDEX) if (file := self.folder / name).exists()]

    @property
    def shards(self) -> list[Path]:
        """The files that hold weights."""
        return sorted({w.file for w in self.weights.values()})

    def find(self, key: str) -> Weight | None:
        """A tensor by its full name, `PREFIXES` aside; never by position.

        Args:
            key: for example "model.layers.0.self_attn.q_proj.weight".

        Returns:
            None if there is no such weight.

        Raises:
            CheckpointError: several weights answer to the name.
        """
        if key in self.weights:
            return self.weights[key]
        same = self._by_core.get(core(key), [])
        if len(same) > 1:
            raise CheckpointError(f"{key} is ambiguous in {self.folder}: {' or '.join(same[:3])}")
        return self.weights[same[0]] if same else None


def rows_of(cut: Cut, transposed: bool, start: int, stop: int) -> Cut:
    """The index of some rows of a matrix: outputs of a linear layer.

    Args:
        cut: the index of the matrix in what is stored.
        transposed: whether it is stored as (in, out).
        start: the first row.
        stop: one past the last.
    """
    experts = [index for index in cut if isinstance(index, int)]
    axes = [index for index in cut if isinstance(index, slice)]
    axes += [slice(None)] * (2 - len(axes))
    axes[1 if transposed else 0] = slice(start, stop)
    return (*experts, *axes)


def weights_of(file: Path) -> dict[str, Weight]:
    """Every tensor of one safetensors file, in the order of the data.

    Raises:
        CheckpointError: missing, truncated or corrupt.
    """
    with _opened(file) as shard, file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
        return {
            key: Weight(
                file=file,
                key=key,
                shape=tuple(header[key]["shape"]),
                dtype=header[key]["dtype"],
                start=8 + length + header[key]["data_offsets"][0],
            )
            for key in shard.offset_keys()
        }


def metadata_of(file: Path) -> dict[str, str]:
    """The free-form metadata in a safetensors header."""
    with _opened(file) as shard:
        return shard.metadata() or {}


def copy_with(source: Path, target: Path, tensors: Iterable[tuple[str, Cut, Float[Tensor, ...]]]) -> None:
    """Copy a safetensors file and overwrite some tensors, or parts of them, in the copy.

    Shapes, types, metadata, key order and every other byte stay as they are, and no more than one tensor is in memory;
    of an expert's, only that expert.

    Args:
        source: stays as it is.
        target: the copy.
        tensors: keys, parts and new values as stored, one at a time; cast to the stored type.

    Raises:
        CheckpointError: a new value has another shape, or is NaN or infinite in the stored type.
    """
    shutil.copyfile(source, target)
    weights = weights_of(source)
    with target.open("r+b") as stream:
        for key, cut, tensor in tensors:
            weight = replace(weights[key], cut=cut)
            if tuple(tensor.shape) != weight.oriented:
                raise CheckpointError(f"{key} must have shape {weight.oriented}; got {tuple(tensor.shape)}")
            stored = _stored(weight, tensor)
            _overwrite(stream, weight, stored)


def _overwrite(stream: BinaryIO, weight: Weight, stored: Float[Tensor, ...]) -> None:
    """Put a part of a tensor where it belongs."""
    start, shape, cut = weight.start, weight.shape, weight.cut
    while cut and isinstance(cut[0], int):  # an expert lies in one piece
        shape = shape[1:]
        start += cut[0] * math.prod(shape) * weight.torch_dtype.itemsize
        cut = cut[1:]
    if cut:
        stream.seek(start)
        around = bytearray(stream.read(math.prod(shape) * weight.torch_dtype.itemsize))
        whole = torch.frombuffer(around, dtype=weight.torch_dtype).reshape(shape)
        whole[cut] = stored
        stored = whole
    stream.seek(start)
    stream.write(_bytes(stored))


def rewrite(source: Path, target: Path, tensors: Mapping[str, Float[Tensor, ...]]) -> None:
    """Write a safetensors file anew with other values, shapes and all, for some of its tensors.

    Types, metadata and the order of keys stay; of the tensors that stay, one at a time is in memory.

    Args:
        source: stays as it is.
        target: the new file.
        tensors: by key; cast to the stored type.

    Raises:
        CheckpointError: a new value is NaN or infinite in the stored type.
    """
    weights = weights_of(source)
    new = {key: _stored(weights[key], tensor) for key, tensor in tensors.items()}
    header: dict[str, Any] = {"__metadata__": metadata_of(source)} if metadata_of(source) else {}
    end = 0
    for key, weight in weights.items():
        shape = list(new[key].shape) if key in new else list(weight.shape)
        start, end = end, end + weight.torch_dtype.itemsize * math.prod(shape)
        header[key] = {"dtype": weight.dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with target.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for key, weight in weights.items():
            stream.write(_bytes(new[key] if key in new else weight.read().contiguous()))


def _stored(weight: Weight, tensor: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """A new value in the stored type."""
    stored = tensor.to(weight.torch_dtype).contiguous()
    if not bool(stored.isfinite().all()):
        raise CheckpointError(f"the new {weight.key} has NaN or infinite values in {weight.dtype}")
    return stored


def _bytes(tensor: Float[Tensor, ...]) -> memoryview:
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data)


def finite(weight: Weight) -> Float[Tensor, ...]:
    """Read a tensor and check it.

    Raises:
        CheckpointError: NaN or infinite values.
    """
    tensor = weight.read()
    if not bool(tensor.isfinite().all()):
        raise CheckpointError(f"{weight.key} in {weight.file} has NaN or infinite values")
    return tensor


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        reason = "does not exist" if not file.exists() else f"is truncated or corrupt ({error})"
        raise CheckpointError(f"{file} {reason}; download or save it again") from error


def _sharded(folder: Path) -> dict[str, Weight]:
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / INDEX} has no `weight_map`; download or save the model again")
    wanted = defaultdict(set)
    for key, name in weight_map.items():
        wanted[name].add(key)
    found: dict[str, Weight] = {}
    for name in sorted(wanted):
        held = weights_of(folder / name)
        if missing := sorted(wanted[name] - held.keys()):
            raise CheckpointError(f"{folder / name} lacks {', '.join(missing[:3])}, which {INDEX} puts there")
        found |= {key: weight for key, weight in held.items() if key in wanted[name]}
    return found


def _why_none(folder: Path) -> str:
    if (folder / "adapter_config.json").exists():
        return f"{folder} holds a PEFT adapter, not a model; give the folder of the full model"
    if any(folder.glob("*.bin")):
        return (
            f"{folder} holds only pickled .bin weights; convert them with "
            "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
        )
    return f"{folder} holds neither {WEIGHTS} nor {INDEX}"


def core(name: str) -> str:
    """The name without any of `PREFIXES`, however nested.

    Args:
        name: of a module or a weight.
    """
    for prefix in PREFIXES:
        if name.startswith(prefix):
            return core(name.removeprefix(prefix))
    return name
