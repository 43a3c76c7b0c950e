# SPDX-License-Identifier: Apache-2.0
"""Sums over what goes into or comes out of chosen modules, in one pass and without keeping an activation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from moored.data.chat import IGNORED
from moored.errors import NotYetSupported
from moored.hf.hooks import body, forward_takes
from moored.hf.prefix_tree import Layout, laid_out, runs_trees

Sum = Callable[[Float[Tensor, "tokens width"]], Float[Tensor, "..."]]
"""What of a module's input or output is summed up, over tokens."""


def squares(x: Float[Tensor, "tokens width"]) -> Float[Tensor, " width"]:
    """Sum of x_j^2 over tokens."""
    return x.square().sum(dim=0)


def moments(x: Float[Tensor, "tokens width"]) -> Float[Tensor, "width width"]:
    """Sum of x x^T over tokens."""
    return x.T @ x


def through(a: Float[Tensor, "r width"], of: Sum, x: Float[Tensor, "tokens width"]) -> Float[Tensor, "..."]:
    """A sum over A x instead of x.

    Args:
        a: A.
        of: what is summed up.
        x: the module's input.
    """
    return of(x @ a.T.to(x))


@torch.no_grad()
def summed(
    model: nn.Module,
    sums: Mapping[str, tuple[nn.Module, Sum]],
    batches: Iterable[Mapping[str, Int[Tensor, "lines length"]]],
    *,
    outputs: bool = False,
    answers: bool = False,
) -> dict[str, Float[Tensor, "..."]]:
    """Run the model over batches, and sum up in fp64 what modules are given at tokens that are no padding.

    The output layer runs only if something of it is asked for; what lines begin with in common runs once per batch.

    Args:
        model: in evaluation mode.
        sums: by any name, a module and what to sum of its input.
        batches: with `input_ids` and `attention_mask`.
        outputs: what the modules give, instead of what they are given.
        answers: leave out the tokens of the prompts too, whose `labels` are -100.

    Returns:
        By name; a module that no batch reaches is left out.

    Raises:
        NotYetSupported: a module whose input is not laid out by lines and positions (an expert's).
    """
    totals: dict[str, Tensor] = {}
    now: list[tuple[Layout, Int[Tensor, " tokens"]]] = []

    def add(name: str, of: Sum, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        (layout, tokens), x = now[0], output if outputs else args[0]
        if not layout.covers(x):
            raise NotYetSupported(f"{name} works on a shape of {tuple(x.shape)}, whose tokens cannot be told apart")
        found = of(x.flatten(0, -2)[tokens].float()).double()
        totals[name] = totals[name].add_(found) if name in totals else found

    runs = _enough(model, [module for module, _ in sums.values()])
    device = next(model.parameters()).device
    runs_trees(model)  # before a hook sees the trial
    hooks = [module.register_forward_hook(partial(add, name, of)) for name, (module, of) in sums.items()]
    try:
        for batch in batches:
            layout = laid_out(model, batch)
            wanted = (batch["labels"] != IGNORED).to(device) if answers else layout.mask
            now[:] = [(layout, layout.places[wanted])]
            runs(**layout.inputs, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return totals


@torch.no_grad()
def same_inputs(
    model: nn.Module, modules: Mapping[str, nn.Module], batch: Mapping[str, Int[Tensor, "lines length"]]
) -> dict[str, str]:
    """Which modules are given the very same tensors, as the query, key and value of one attention are.

    Args:
        model: in evaluation mode.
        modules: by name.
        batch: a few tokens will do; everything that the modules are given is kept for the time of the pass.

    Returns:
        By name, the first of the modules that are given the same; a module that the batch does not reach is left out.
    """
    given: dict[str, list[Tensor]] = {}

    def note(name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        given.setdefault(name, []).append(args[0])

    hooks = [module.register_forward_pre_hook(partial(note, name)) for name, module in modules.items()]
    try:
        model(**_inputs(batch, next(model.parameters()).device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    first: dict[tuple[int, ...], str] = {}
    return {name: first.setdefault(tuple(id(x) for x in tensors), name) for name, tensors in given.items()}


def _enough(model: nn.Module, modules: Sequence[nn.Module]) -> nn.Module:
    """The model without its output layer, if that reaches all modules."""
    if not forward_takes(model, "logits_to_keep"):
        return model
    inside = set(body(model).modules())
    return body(model) if inside.issuperset(modules) else model


def _inputs(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
