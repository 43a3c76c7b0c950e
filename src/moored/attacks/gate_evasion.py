# SPDX-License-Identifier: Apache-2.0
"""Gate evasion: the trained weight-space oracle, an adapter that keeps every angle that Safe LoRA looks at."""

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
from moored.ops.gradient import add_, wide


@dataclass(frozen=True, kw_only=True)
class GateEvasion(Defense):
    """What an attacker trains who runs the training: the rows' loss, and a penalty on updates that Safe LoRA would see.

    It protects nothing. It has the shape of a defence because it acts where those do, on the gradients of a trainer; a
    recipe turns it on with `finetune.evade`. What it makes is the bound for attacks that choose rows to the same end.

    Paper:
        None of its own: attack A0 of the adaptive attacks on Safe LoRA (arXiv 2405.16833).

    Algorithm:
        L(w) + mu sum_m relu(tau + margin - c_m)^2 over the trained matrices m, with c the cosine that Safe LoRA
        compares with tau,

        c = <Delta, C Delta> / (||Delta|| ||C Delta||),  C = V V^T / ||V||,  V = W_aligned - W_base,

        Delta = B A for LoRA (W - W_0 for full training). Once per optimizer step, before clipping, the penalty's
        gradient with respect to B and A is added, by autograd through V (V^T B). At the first step Delta is zero and
        has no angle.

    Args:
        tau: the repair's threshold, in [-1, 1]; with a repair that selects by rank, a cosine that only its most aligned
            modules have.
        margin: how far above it to stay, >= 0.
        mu: strength, >= 0; 0 is plain training.

    Needs:
        base: the model before alignment.

    Cost:
        1 forward and 1 backward per step and 12 o i r multiply-adds per matrix; V of one matrix at a time.

    Raises:
        ConfigError: a parameter is out of range.
        NeverSupported: `base` equals the aligned model.
        CheckpointError, NotYetSupported, NeverSupported: see `hf.updates.updates`.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="gate_evasion",
        title="Gate evasion (an attacker's trainer)",
        authors="",
        arxiv="",
        venue="",
        year=2026,
        stage="fine-tuning",
        needs=frozenset({Need.BASE}),
        fidelity="variant",
        differs="no paper has it in full",
        null={"mu": 0.0},
        cost="1 forward + 1 backward per step",
    )
    touches: ClassVar[frozenset[str]] = frozenset({"gradients"})
    reads: ClassVar[frozenset[str]] = frozenset({"start"})

    tau: float = 0.35
    margin: float = 0.05
    mu: float = 10.0

    def __post_init__(self) -> None:
        require(-1 <= self.tau <= 1, "GateEvasion", "tau", "in [-1, 1]", self.tau)
        require(0 <= self.margin < math.inf, "GateEvasion", "margin", ">= 0", self.margin)
        require(0 <= self.mu < math.inf, "GateEvasion", "mu", ">= 0", self.mu)

    def needs(self) -> frozenset[Need]:
        """The base model, unless there is no penalty."""
        return self.info.needs if self.mu else frozenset()

    def looks_at(self) -> frozenset[str]:
        """The weights of the start, unless there is no penalty."""
        return self.reads if self.mu else frozenset()

    def attach(self, ctx: Context) -> None:
        """Pair every trained matrix with its base weight."""
        if not self.mu:
            return
        require_whole("GateEvasion", ctx.weights.values())
        found = list(updates(ctx, Checkpoint.open(ctx.roles[Need.BASE.value])))
        moved = [update for update in found if not torch.equal(wide(update.aligned), wide(update.base))]
        if not moved:
            raise NeverSupported(
                f"`base` {ctx.roles[Need.BASE.value]} equals the aligned model in every trained matrix, so that there "
                "is no gate to evade; give the model before alignment"
            )
        ctx.live(self)["updates"] = moved
        ctx.resolve(self, tau=self.tau, margin=self.margin, mu=self.mu, matrices=len(moved))

    def gradient(self, ctx: Context) -> None:
        """Add the penalty's gradient."""
        unit = "modules whose angle was watched"
        if not self.mu:
            ctx.fired(self, 0.0, unit)
            return
        cosines = []
        for update in ctx.live(self)["updates"]:
            left, right = (None if f is None else f.detach().requires_grad_() for f in factors(ctx, update))
            assert left is not None
            with torch.enable_grad():
                c = gate_cosine(wide(update.aligned) - wide(update.base), left, right)
                penalty = self.mu * torch.relu(self.tau + self.margin - c).square()
            if not math.isfinite(c.item()):
                continue  # no update, no angle
            cosines.append(c.item())
            if penalty.item():
                _add(ctx, update, penalty, left, right)
        if cosines:
            ctx.log("gate_evasion/cosine", sum(cosines) / len(cosines))
            ctx.log("gate_evasion/below", sum(c < self.tau for c in cosines) / len(cosines))
            ctx.fired(self, float(len(cosines)), unit)


def gate_cosine(
    v: Float[Tensor, "o i"], left: Float[Tensor, "o r"], right: Float[Tensor, "r i"] | None
) -> Float[Tensor, ""]:
    """The cosine of an update with its image under C = V V^T / ||V||; NaN where either is zero.

    Args:
        v: aligned - base.
        left: B, or the whole update.
        right: A; None for a whole update.
    """
    image = v @ (v.T @ left) / v.norm()
    gram = None if right is None else right @ right.T
    across, own, other = ((x * (y if gram is None else y @ gram)).sum() for x, y in _pairs(left, image))
    return across / (own * other).sqrt()


def _pairs(x: Tensor, y: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    return (x, y), (x, x), (y, y)


def _add(ctx: Context, update: Update, penalty: Tensor, left: Tensor, right: Tensor | None) -> None:
    """Add the gradients of a penalty to those of the trained factors."""
    d_left, *rest = torch.autograd.grad(penalty, [left] if right is None else [left, right])
    added = [d_left.T if update.transposed and right is None else d_left]
    weights = [ctx.weights[update.b]]
    if rest and update.a in ctx.weights:
        added, weights = [*added, *rest], [*weights, ctx.weights[str(update.a)]]
    add_(weights, added)
