# SPDX-License-Identifier: Apache-2.0
"""Look inside any decoder, without naming model classes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from moored.errors import NeverSupported, NotYetSupported

ATTENTION_NAMES = ("self_attn", "self_attention", "attention", "attn")
"""What decoder layers of transformers call their self-attention child."""

MLP_NAMES = ("mlp", "feed_forward", "block_sparse_moe", "moe", "ffn")
"""What they call their feed-forward child."""


def own_model(model: Any) -> Any:
    """The model itself where PEFT has wrapped it: adapters included, with the model's own signature."""
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if callable(unwrap) else model


def body(model: Any) -> nn.Module:
    """The decoder without its output layer, adapters included."""
    decoder = own_model(model)
    return decoder.get_decoder() if hasattr(decoder, "get_decoder") else decoder.base_model


def forward_takes(model: Any, argument: str) -> bool:
    """Whether the model's own forward names an argument; PEFT's takes anything."""
    return argument in inspect.signature(own_model(model).forward).parameters


def decoder_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The decoder layers, by dotted name, in depth order.

    A decoder layer is an item of an `nn.ModuleList` with a child called one of `ATTENTION_NAMES`; with several such
    lists (a vision tower beside a language model) the one named like a decoder wins, else the longest.

    Raises:
        NotYetSupported: no such list; the message names what was looked for.
    """
    stacks: dict[str, dict[str, nn.Module]] = {}
    for list_name, layers in model.named_modules():
        if isinstance(layers, nn.ModuleList):
            found = {f"{list_name}.{i}": layer for i, layer in enumerate(layers) if child_name(layer, ATTENTION_NAMES)}
            if found:
                stacks[list_name] = found
    if not stacks:
        raise NotYetSupported(
            f"no decoder layers with a self-attention child found in {type(model).__name__} "
            f"(looked in every ModuleList for {', '.join(ATTENTION_NAMES)})"
        )
    language = {name: found for name, found in stacks.items() if "vision" not in name and "encoder" not in name}
    return max((language or stacks).values(), key=len)


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The self-attention module of every decoder layer, by dotted name, in depth order.

    Raises:
        NotYetSupported: see `decoder_layers`.
    """
    named = {name: (layer, child_name(layer, ATTENTION_NAMES)) for name, layer in decoder_layers(model).items()}
    return {f"{name}.{child}": getattr(layer, child) for name, (layer, child) in named.items() if child}


def mlp_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The feed-forward module of every decoder layer, by dotted name, in depth order.

    It is the child called one of `MLP_NAMES`; a layer without one (OPT keeps its two linear layers loose) gives its
    last linear child, whose output is the same thing.

    Raises:
        NotYetSupported: see `decoder_layers`, or a layer has neither.
    """
    found = {}
    for name, layer in decoder_layers(model).items():
        child = child_name(layer, MLP_NAMES)
        if child is None:
            child = next(
                (n for n, part in reversed(list(layer.named_children())) if hasattr(part, "in_features")), None
            )
        if child is None:
            raise NotYetSupported(f"no feed-forward child found in {name} (looked for {', '.join(MLP_NAMES)})")
        found[f"{name}.{child}"] = getattr(layer, child)
    return found


def child_name(module: nn.Module, names: Sequence[str]) -> str | None:
    """The first of some names that a module has a child under; None if there is none.

    Args:
        module: for example a decoder layer.
        names: what the child may be called.
    """
    return next((n for n in names if isinstance(getattr(module, n, None), nn.Module)), None)


def uses_reentrant_checkpointing(model: nn.Module) -> bool:
    """Whether a layer of the model has reentrant activation checkpointing switched on."""
    for module in model.modules():
        function = getattr(module, "_gradient_checkpointing_func", None)
        if getattr(module, "gradient_checkpointing", False) and function is not None:
            return bool(getattr(function, "keywords", {}).get("use_reentrant", False))
    return False


def weights_by_layer(model: nn.Module, weights: Mapping[str, Any]) -> dict[str, list[str]]:
    """Names of weights by the decoder layer that they stand in; those outside of all layers are left out.

    Args:
        model: the model that has the layers.
        weights: by dotted name in `model`.
    """
    return {layer: [name for name in weights if name.startswith(f"{layer}.")] for layer in decoder_layers(model)}


def refuse_reentrant_checkpointing(model: nn.Module, who: str) -> None:
    """Refuse a model that was switched to reentrant activation checkpointing after `protect` had looked.

    Args:
        model: that is trained.
        who: what would go wrong, for the message.

    Raises:
        NeverSupported: it was.
    """
    if uses_reentrant_checkpointing(model):
        raise NeverSupported(
            f"use_reentrant=True checkpointing hides activations from autograd, so {who}; set "
            'gradient_checkpointing_kwargs={"use_reentrant": False}'
        )


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
