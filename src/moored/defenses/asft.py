# SPDX-License-Identifier: Apache-2.0
"""AsFT: penalise the part of the update that leaves the direction in which the model was aligned."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from moored.context import Context
from moored.defenses.base import Defense
from moored.errors import NeverSupported, require
from moored.hf.checkpoint import Checkpoint
from moored.hf.sharding import require_whole
from moored.hf.updates import Update, factors, updates
from moored.method import MethodInfo, Need
from moored.ops.gradient import add_
from moored.ops.projection import project_on_safety


@dataclass(frozen=True, kw_only=True)
class AsFT(Defense):
    """Add the squared length of the update off the alignment direction to the loss. Needs no safety data.

    Paper:
        Yang et al.: AsFT: Anchoring Safety During LLM Fine-Tuning Within Narrow Safety Basin, AAAI 2026,
        arXiv 2506.08473.

    Algorithm:
        L(w) + lam sum_m ||(I - C_m) Delta W_m||^2 over the trained matrices m, with Delta W = s B A for LoRA (W - W_0
        for full training), C = V V^T / ||V|| and V = W_aligned - W_base. Once per optimizer step, before clipping, the
        gradient is added in closed form (`AsFT.gradient`, `off_direction`):

        1. X = (I - C) B and Y = (I - C) X, each in one sweep over V       (`ops.projection.project_on_safety`)
        2. dB = 2 lam s^2 Y (A A^T),  dA = 2 lam s^2 (B^T Y) A;            dW = 2 lam Y for a dense update
        3. the penalty itself is s^2 sum (X^T X) o (A A^T).

        Neither an o x o matrix nor B A exists.

    Args:
        lam: strength, >= 0; 0 is plain training [loss per squared weight unit]. The authors penalise B A without its
            scale; in their setting s = 4, so that their lam = 1 is 1/16 here (`paper`).

    Needs:
        base: folder or hub id of the model before alignment, same architecture, in safetensors. The aligned weights
        are those that the run starts from: the frozen weights under a LoRA, W_0 in full training. None if `lam=0`.

    Cost:
        1 forward and 1 backward per step and 8 o i r multiply-adds per matrix. Full training has the rank i, about as
        much as a forward pass over i tokens. Extra memory: the base weights of the trained matrices in their own
        type, one copy of the trainable weights.

    Differs from paper:
        s is in (see `lam`), the start of the run is subtracted, matrices are matched by name (the authors' code goes
        by position), and the penalty is added once per optimizer step however many micro-batches it has (theirs once
        per micro-batch). Full training is regularised too; their code leaves it alone.

    Know before use:
        - C is no projector, though the paper calls it one: its eigenvalues are sigma^2 / ||V||. Where V is short, C is
          near 0 and the penalty near lam ||Delta W||^2, plain weight decay of the update; where sigma_1^2 > ||V||,
          moving along V is penalised as well. `asft/share` in the log is ||(I - C) Delta W|| / ||Delta W||: near 1, the
          direction does not matter.
        - At the first step the update is zero, and so is the penalty: a run of one step is not defended and says so.
        - Trained weights other than matrices of decoder layers (embeddings, head, norms, biases, fully trained
          modules beside a LoRA) are not penalised; how many there are is said at the start.

    Raises:
        ConfigError: a parameter is out of range.
        CheckpointError: a matrix has no counterpart in `base`, or one of another shape, or with NaN.
        NeverSupported: DoRA, whose update is not s B A; `base` equals the aligned model.
        NotYetSupported: FSDP; quantised weights; an adapter that is not LoRA, or not zero at the start of the run.

    Example:
        >>> AsFT.paper().parameters()
        {'lam': 0.0625}
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="asft",
        title="AsFT: Anchoring Safety During LLM Fine-Tuning Within Narrow Safety Basin",
        authors="Yang, Shuo et al.",
        arxiv="2506.08473",
        venue="AAAI 2026",
        year=2026,
        stage="fine-tuning",
        needs=frozenset({Need.BASE}),
        fidelity="paper",
        differs="lam weighs s B A instead of B A; the penalty acts once per optimizer step",
        null={"lam": 0.0},
        cost="1 forward + 1 backward per step; the base weights of the trained matrices",
    )
    touches: ClassVar[frozenset[str]] = frozenset({"gradients"})
    reads: ClassVar[frozenset[str]] = frozenset({"start"})

    lam: float = 0.0625

    def __post_init__(self) -> None:
        require(0 <= self.lam < math.inf, "AsFT", "lam", ">= 0", self.lam)

    @classmethod
    def paper(cls) -> AsFT:
        """The authors' scripts: lam = 1 on B A with alpha / r = 32 / 8, which is 1/16 on s B A."""
        return cls(lam=1 / 16)

    def needs(self) -> frozenset[Need]:
        """The base model, unless there is no penalty."""
        return self.info.needs if self.lam else frozenset()

    def looks_at(self) -> frozenset[str]:
        """The weights of the start, unless there is no penalty."""
        return self.reads if self.lam else frozenset()

    def attach(self, ctx: Context) -> None:
        """Pair every trained matrix with its base weight; say what is left out."""
        if not self.lam:
            return
        require_whole("AsFT", ctx.weights.values())
        found = ctx.live(self)["updates"] = list(updates(ctx, Checkpoint.open(ctx.roles[Need.BASE.value])))
        norms = [_norm(update) for update in found]
        if not any(norms):
            raise NeverSupported(
                f"`base` {ctx.roles[Need.BASE.value]} equals the aligned model in every trained matrix, so that "
                "aligned - base gives no direction; give the model before alignment"
            )
        trained = {name for u in found for name in (u.b, u.a)}
        ctx.resolve(
            self,
            lam=self.lam,
            matrices=len(found),
            without_direction=norms.count(0.0),
            not_penalised=len(set(ctx.weights) - trained),
        )

    def gradient(self, ctx: Context) -> None:
        """Add the penalty's gradient."""
        unit = "length of the update off the alignment direction"
        if not self.lam:
            ctx.fired(self, 0.0, unit)
            return
        off = whole = torch.zeros((), dtype=torch.float64, device=ctx.trainer.args.device)
        for update in ctx.live(self)["updates"]:
            left, right = factors(ctx, update)
            x, y = off_direction(update.aligned, update.base, left, right)
            gram = None if right is None else right @ right.T
            off, whole = off + _square(x, gram, update.scale), whole + _square(left, gram, update.scale)
            _add(ctx, update, left, right, 2 * self.lam * update.scale**2 * y)
        ctx.log("asft/penalty", self.lam * off)
        ctx.log("asft/update", whole.sqrt())
        if off > 0:
            ctx.log("asft/share", (off / whole).sqrt())
            ctx.fired(self, off.sqrt(), unit)


def off_direction(
    aligned: Float[Tensor, "o i"],
    base: Float[Tensor, "o i"],
    left: Float[Tensor, "o r"],
    right: Float[Tensor, "r i"] | None,
) -> tuple[Float[Tensor, "o r"], Float[Tensor, "o r"]]:
    """(I - C) B and (I - C)^2 B, with C = V V^T / ||V|| and V = aligned - base.

    Args:
        aligned: the weight that the run starts from.
        base: the weight before alignment.
        left: B, or the whole update.
        right: A; None for a whole update.
    """
    x = left - project_on_safety(aligned, base, left, right).projected
    return x, x - project_on_safety(aligned, base, x, right).projected


def _add(ctx: Context, update: Update, left: Tensor, right: Tensor | None, y: Tensor) -> None:
    """Add the gradient 2 lam s^2 (I - C)^2 B A to those of the trained factors."""
    if right is None:
        add_([ctx.weights[update.b]], [y.T if update.transposed else y])
        return
    add_([ctx.weights[update.b]], [y @ (right @ right.T)])
    if update.a in ctx.weights:
        add_([ctx.weights[update.a]], [(left.T @ y) @ right])


def _square(left: Tensor, gram: Tensor | None, scale: float) -> Float[Tensor, ""]:
    """||s B A||^2 from B and A A^T."""
    inner = left * left if gram is None else (left.T @ left) * gram
    return scale**2 * inner.sum(dtype=torch.float64).clamp(min=0)


def _norm(update: Update) -> float:
    """||V||."""
    none = update.aligned.new_zeros(update.aligned.shape[0], 1), update.aligned.new_zeros(1, update.aligned.shape[1])
    return project_on_safety(update.aligned, update.base, *none).norm
