# SPDX-License-Identifier: Apache-2.0
"""Look inside any decoder, without naming model classes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from moored.errors import NotYetSupported

ATTENTION_NAMES = ("self_attn", "self_attention", "attention", "attn")
"""What decoder layers of transformers call their self-attention child."""


def own_model(model: Any) -> Any:
    """The model itself where PEFT has wrapped it: adapters included, with the model's own signature."""
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if callable(unwrap) else model


def forward_takes(model: Any, argument: str) -> bool:
    """Whether the model's own forward names an argument; PEFT's takes anything."""
    return argument in inspect.signature(own_model(model).forward).parameters


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The self-attention module of every decoder layer, by dotted name, in depth order.

    A decoder layer is an item of an `nn.ModuleList` with a child called one of `ATTENTION_NAMES`; with several such
    lists (a vision tower beside a language model) the one named like a decoder wins, else the longest.

    Raises:
        NotYetSupported: no such list; the message names what was looked for.
    """
    stacks: dict[str, dict[str, nn.Module]] = {}
    for list_name, layers in model.named_modules():
        if isinstance(layers, nn.ModuleList):
            found = {}
            for i, layer in enumerate(layers):
                name = next((n for n in ATTENTION_NAMES if isinstance(getattr(layer, n, None), nn.Module)), None)
                if name is not None:
                    found[f"{list_name}.{i}.{name}"] = getattr(layer, name)
            if found:
                stacks[list_name] = found
    if not stacks:
        raise NotYetSupported(
            f"no decoder layers with a self-attention child found in {type(model).__name__} "
            f"(looked in every ModuleList for {', '.join(ATTENTION_NAMES)})"
        )
    language = {name: found for name, found in stacks.items() if "vision" not in name and "encoder" not in name}
    return max((language or stacks).values(), key=len)


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module's own mode again.

    Evaluation mode is also what makes gradient checkpointing leave the cache alone.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
