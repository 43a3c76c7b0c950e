# SPDX-License-Identifier: Apache-2.0
"""The few numbers in which a repaired model differs from the tuned one: a small file, and putting it into a model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from moored.errors import CheckpointError
from moored.hf.checkpoint import Cut, core, metadata_of

PATCH = "patch.safetensors"
POSITIONS, VALUES = ":positions", ":values"

Change = tuple[Int[Tensor, " n"], Float[Tensor, " n"]]
"""Positions in a flat tensor as stored, and the numbers there."""


def change(
    old: Float[Tensor, "..."], new: Float[Tensor, "..."], shape: tuple[int, ...], cut: Cut
) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    """Where a part of a stored tensor differs, and by which numbers.

    Args:
        old: the part before, as stored.
        new: after, in the stored type.
        shape: of the whole tensor.
        cut: the part.
    """
    at = (old != new).flatten().nonzero().squeeze(1)
    values = new.flatten()[at]
    if cut:
        at = torch.arange(math.prod(shape)).view(shape)[cut].flatten()[at]
    return at, values


def save_patch(file: Path, changes: Mapping[str, list[Change]], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Write changes by the key of the tensor.

    Args:
        file: the safetensors file to write.
        changes: of the parts of each tensor.
        shapes: of the tensors.
    """
    tensors = {}
    for key, parts in changes.items():
        wide = math.prod(shapes[key]) > torch.iinfo(torch.int32).max
        tensors[key + POSITIONS] = torch.cat([at for at, _ in parts]).to(torch.int64 if wide else torch.int32)
        tensors[key + VALUES] = torch.cat([values for _, values in parts]).contiguous()
    save_file(tensors, file, metadata={"shapes": json.dumps({key: list(shapes[key]) for key in changes})})


@torch.no_grad()
def apply_patch(model: Any, file: str | Path) -> int:
    """Put a patch into the tuned model that it was made for, adapters merged; whatever its type and device.

    Args:
        model: with the tuned weights; changed in place.
        file: `patch.safetensors`, beside the report of `repair(..., patch=True)`.

    Returns:
        How many numbers were written.

    Raises:
        CheckpointError: no patch, or one for another model; then nothing has been written.
    """
    held, shapes = load_file(file), json.loads(metadata_of(Path(file)).get("shapes", "{}"))
    parameters = {core(name): parameter for name, parameter in model.named_parameters()}
    if not shapes:
        raise CheckpointError(f"{file} is no patch, or an empty one")
    for key, shape in shapes.items():
        parameter = parameters.get(core(key))
        if parameter is None or list(parameter.shape) != shape:
            raise CheckpointError(f"{file} is for a model with {key} of shape {shape}, which this one has not")
    for key in shapes:
        parameter, at = parameters[core(key)], held[key + POSITIONS].long()
        parameter.view(-1)[at.to(parameter.device)] = held[key + VALUES].to(parameter)
    return sum(len(held[key + VALUES]) for key in shapes)
