# SPDX-License-Identifier: Apache-2.0
"""The update of every trained matrix since the start of a run, beside the weights that it was aligned from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from moored.context import Context
from moored.errors import CheckpointError, NotYetSupported
from moored.hf.checkpoint import Checkpoint, finite
from moored.hf.hooks import weights_by_layer
from moored.hf.matrices import Product, dense_matrices, products
from moored.ops.gradient import wide


class Update(NamedTuple):
    """A trained weight matrix: what it was aligned from, and the names of what is trained."""

    aligned: Float[Tensor, "o i"]
    base: Float[Tensor, "o i"]
    b: str
    """lora_B, or the weight itself."""
    a: str | None = None
    """lora_A; None for a dense update."""
    scale: float = 1.0
    transposed: bool = False
    """The dense weight is kept as (i, o)."""


def updates(ctx: Context, base: Checkpoint) -> Iterator[Update]:
    """The trained matrices of the decoder layers with their base weights.

    Args:
        ctx: of a run; what asks must read "start".
        base: the model before alignment.

    Raises:
        CheckpointError: a matrix has no counterpart in `base`, or one of another shape, or with NaN.
        NotYetSupported: quantised weights; an adapter that is not LoRA, or not zero at the start of the run.
        NeverSupported: DoRA, whose update is not s B A.
    """
    adapted = products(ctx.model, ctx.weights, ctx.start)
    if adapted:
        for product in adapted:
            if ".lora_embedding_" not in product.b:
                yield _of_product(ctx, base, product)
        return
    dense = set(dense_matrices(ctx.model, ctx.weights))
    for names in weights_by_layer(ctx.model, ctx.weights).values():
        for name in names:
            if name in dense and name.endswith(".weight") and ctx.weights[name].ndim == 2:
                turned = _turned(ctx.model.get_submodule(name.removesuffix(".weight")))
                yield Update(*_pair(ctx.start[name], name, base, turned), b=name, transposed=turned)


def factors(ctx: Context, update: Update) -> tuple[Tensor, Tensor | None]:
    """B and A of the update since the start, or the whole update and None, in fp32 at least, without a graph.

    Args:
        ctx: of the run.
        update: one of `updates`.
    """
    b, start = wide(ctx.weights[update.b]), wide(ctx.start[update.b])
    if update.a is None:
        whole = b - start
        return (whole.T if update.transposed else whole), None
    # an update with a trained A was zero at the start (`hf.matrices.products`), so that s B A is all of it
    return (b if update.a in ctx.weights else b - start), wide(ctx.model.get_parameter(update.a))


def _of_product(ctx: Context, base: Checkpoint, product: Product) -> Update:
    module = product.b.rpartition(".lora_B.")[0]
    layer: Any = ctx.model.get_submodule(module).get_base_layer()
    pair = _pair(layer.weight.detach(), f"{module}.weight", base, _turned(layer))
    return Update(*pair, b=product.b, a=product.a, scale=product.scale)


def _turned(layer: nn.Module) -> bool:
    """Whether a layer keeps its weight as (in, out), as GPT-2's Conv1D does."""
    return not isinstance(layer, nn.Linear) and hasattr(layer, "nf")


def _pair(aligned: Tensor, key: str, base: Checkpoint, turned: bool) -> tuple[Tensor, Tensor]:
    """Aligned and base weight as (o, i), on the device of the former."""
    if not aligned.is_floating_point() or aligned.ndim != 2:
        raise NotYetSupported(
            f"{key} is held as {aligned.dtype} {tuple(aligned.shape)}, and rounding would drown aligned - base; "
            "load the model without quantisation"
        )
    weight = base.find(key)
    if weight is None or weight.shape != tuple(aligned.shape):
        found = "has no such weight" if weight is None else f"has {weight.shape}"
        raise CheckpointError(
            f"{key} is trained as {tuple(aligned.shape)}, but `base` {base.folder} {found}; give the same architecture"
        )
    before = finite(replace(weight, transposed=turned)).to(aligned.device)
    return (aligned.T if turned else aligned), before
