# SPDX-License-Identifier: Apache-2.0
"""Gradients of single rows with respect to the linear layers of a model, read as factors during one backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers.pytorch_utils import Conv1D

from moored.data.chat import IGNORED
from moored.errors import NotYetSupported
from moored.hf.hooks import decoder_layers
from moored.ops.factored import total

Batch = Mapping[str, Int[Tensor, "rows length"]]

Measure = Callable[[str, Float[Tensor, "rows tokens o"], Float[Tensor, "rows tokens i"]], Float[Tensor, "rows ..."]]
"""What of the gradients of the rows is wanted, given a module's name, delta and x (see `ops.factored`)."""


class Measured(NamedTuple):
    """What is known of each row."""

    loss: Float[Tensor, " rows"]
    """Mean cross-entropy over the tokens of the row's answer: what its gradient is of."""
    values: list[Float[Tensor, "rows modules ..."]]
    """By measure; modules in their order."""


def linear_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers inside the decoder layers, by dotted name: what LoRA is put on."""
    return {
        f"{layer}.{name}": module
        for layer, block in decoder_layers(model).items()
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }


def measured(
    model: Any, modules: Mapping[str, nn.Module], batches: Iterable[Batch], measures: Iterable[Measure]
) -> Measured:
    """Numbers of every row's own gradient, at one forward and one backward pass per batch.

    Args:
        model: in evaluation mode; no gradient of a weight is computed, and nothing is left on it.
        modules: linear layers by name.
        batches: rows with `labels`, padded on the right.
        measures: of each module's gradient; a number or a tensor per row.

    Raises:
        NotYetSupported: a module that a batch does not reach, or see `backward`.
    """
    measures = list(measures)
    losses: list[Tensor] = []
    values: list[list[Tensor]] = [[] for _ in measures]
    for batch in batches:
        found: dict[str, list[Tensor]] = {}

        def see(name: str, delta: Tensor, x: Tensor, found: dict[str, list[Tensor]] = found) -> None:
            found[name] = [measure(name, delta, x).cpu() for measure in measures]

        losses.append(backward(model, modules, batch, see).cpu())
        if unseen := next((name for name in modules if name not in found), None):
            raise NotYetSupported(f"{unseen} is not reached by every row, as an expert is; leave it out")
        for at in range(len(measures)):
            values[at].append(torch.stack([found[name][at] for name in modules], dim=1))
    return Measured(torch.cat(losses), [torch.cat(parts) for parts in values])


def mean_gradient(
    model: Any, modules: Mapping[str, nn.Module], batches: Iterable[Batch]
) -> dict[str, Float[Tensor, "o i"]]:
    """The mean of the rows' gradients, a matrix per module.

    Args:
        model: see `measured`.
        modules: see `measured`.
        batches: see `measured`.
    """
    sums: dict[str, Tensor] = {}

    def see(name: str, delta: Tensor, x: Tensor) -> None:
        sums[name] = sums[name] + total(delta, x) if name in sums else total(delta, x)

    rows = sum(len(backward(model, modules, batch, see)) for batch in batches)
    return {name: tensor / rows for name, tensor in sums.items()}


def backward(
    model: Any,
    modules: Mapping[str, nn.Module],
    batch: Batch,
    see: Callable[[str, Float[Tensor, "rows tokens o"], Float[Tensor, "rows tokens i"]], None],
) -> Float[Tensor, " rows"]:
    """One pass: `see` is told of every module's factors as backward comes by, so that none are kept.

    The losses of the rows are summed, and no row sees another, so the part of a factor that is a row's is that of its
    own loss.

    Args:
        model: see `measured`.
        modules: see `measured`.
        batch: see `measured`.
        see: given the module's name, delta and x.

    Returns:
        The losses of the rows.

    Raises:
        NotYetSupported: a module whose input is not laid out by rows and tokens (an expert's).
    """
    shape = batch["input_ids"].shape
    device = next(model.parameters()).device
    start: list[Tensor] = []

    def enter(module: nn.Module, args: Any, output: Tensor) -> None:
        start.append(output.requires_grad_())

    def watch(name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        x = args[0].detach()
        if x.shape[:-1].numel() != shape.numel():
            raise NotYetSupported(f"{name} works on a shape of {tuple(x.shape)}, whose rows cannot be told apart")
        output.register_hook(lambda delta: see(name, _by_row(delta, shape), _by_row(x, shape)))

    hooks = [module.register_forward_hook(partial(watch, name)) for name, module in modules.items()]
    hooks.append(model.get_input_embeddings().register_forward_hook(enter))
    try:
        with torch.enable_grad():
            ids, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
            losses = row_losses(model(input_ids=ids, attention_mask=mask, use_cache=False).logits, batch["labels"])
            # Asked for the embeddings' gradient alone, autograd passes every module and no weight's gradient is formed.
            torch.autograd.grad(losses.sum(), start[0])
    finally:
        for hook in hooks:
            hook.remove()
    return losses.detach()


def row_losses(
    logits: Float[Tensor, "rows length vocabulary"], labels: Int[Tensor, "rows length"]
) -> Float[Tensor, " rows"]:
    """Mean cross-entropy of each row over its own tokens to be learnt.

    Args:
        logits: of the model.
        labels: -100 outside the answers.
    """
    targets = labels[:, 1:].to(logits.device)
    work = torch.promote_types(logits.dtype, torch.float32)
    each = cross_entropy(logits[:, :-1].to(work).mT, targets, ignore_index=IGNORED, reduction="none")
    return each.sum(dim=1) / (targets != IGNORED).sum(dim=1).clamp(min=1)


def _by_row(x: Tensor, shape: torch.Size) -> Tensor:
    """A factor as (rows, tokens, width); OPT's feed-forward flattens the two."""
    return x.detach().reshape(*shape, x.shape[-1])
