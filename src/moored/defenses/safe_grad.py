# SPDX-License-Identifier: Apache-2.0
"""SafeGrad: take out of the user's gradient what opposes the alignment gradient, and add some of the latter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch import Tensor

from moored.context import Context
from moored.defenses.base import Batch, Defense
from moored.errors import require
from moored.hf.reader import answer_labels
from moored.hf.sharding import whole
from moored.method import MethodInfo, Need
from moored.ops.divergence import kl
from moored.ops.gradient import add_, dot

AlignmentLoss = Literal["kl", "ce"]

TINY = 1e-9
"""Squared length of the alignment gradient up to which it gives no direction: the authors' guard on the projection."""


@dataclass(frozen=True, kw_only=True)
class SafeGrad(Defense):
    """Project the user's gradient off the alignment gradient where the two conflict.

    Paper:
        Yi et al.: Gradient Surgery for Safe LLM Fine-Tuning, 2025, arXiv 2508.07172.

    Algorithm:
        Once per optimizer step (`SafeGrad.gradient`), with g the accumulated gradient of the trainer's own loss:

        1. g_a = gradient of the alignment loss on the alignment rows of this step (`Context.gradient_on`):
           KL(p_w0(. | x, y_<t) || p_w(. | x, y_<t)), mean over answer tokens, w0 the weights at the start of the run
           (Eq. 6, `ops.divergence.kl`), or the trainer's own loss;
        2. if <g, g_a> < 0 (Eq. 3, one inner product over all trainable weights): g <- g - <g, g_a> / ||g_a||^2 g_a
           (Eq. 4, `coefficient`); the alignment gradient is never projected;
        3. g <- g + rho g_a (Eq. 5), then clipping and optimizer.

    Args:
        rho: part of the alignment gradient that is added, >= 0. Authors' script: 1.
        alignment_loss: "kl" as in the paper; "ce", the trainer's own loss on the alignment rows, its ablation, which
            needs no reference and works with preference trainers.
        project: step 2; False with rho > 0 is a plain weighted sum, an ablation in the authors' code.

    Needs:
        alignment: harmful prompts with safe answers (none if `rho=0` and `project=False`). "kl" reads what the model
        of the start says about them, so that model must be aligned.

    Cost:
        2 forward and 2 backward per step, and 1 forward of the reference with "kl". Extra memory: one gradient, and
        one copy of the trainable weights with "kl".

    Differs from paper:
        The authors' code sums the KL over prompt and padding positions too and divides by the answer tokens; here it
        is a mean over answer tokens, so rho weighs less. Their step overwrites accumulated gradients, so all but the
        last micro-batch are lost; here surgery is done once, on the accumulated gradient. A g_a with
        ||g_a||^2 <= 1e-9 is taken for rounding: theirs then only leaves the projection out, here the step is plain. So
        it is at the start, where w = w0 and without dropout the KL has no gradient; a run of one step says that it is
        not defended. The equation numbers are those of a third-party note.

    Raises:
        ConfigError: a parameter is out of range.
        NotYetSupported: "kl" with a trainer of preferences.

    Example:
        >>> SafeGrad.paper().parameters()
        {'rho': 1.0, 'alignment_loss': 'kl', 'project': True}
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="safe_grad",
        title="Gradient Surgery for Safe LLM Fine-Tuning",
        authors="Yi, Biao et al.",
        arxiv="2508.07172",
        venue="arXiv",
        year=2025,
        stage="fine-tuning",
        needs=frozenset({Need.ALIGNMENT}),
        fidelity="paper",
        differs="KL over answer tokens only; surgery on the accumulated gradient",
        null={"rho": 0.0, "project": False},
        cost="3 forward + 2 backward per step; one gradient and one copy of the trainable weights",
    )
    touches: ClassVar[frozenset[str]] = frozenset({"gradients"})
    reads: ClassVar[frozenset[str]] = frozenset({"answers", "start"})

    rho: float = 1.0
    alignment_loss: AlignmentLoss = "kl"
    project: bool = True

    def __post_init__(self) -> None:
        require(0 <= self.rho < math.inf, "SafeGrad", "rho", ">= 0", self.rho)
        losses = get_args(AlignmentLoss)
        ok = self.alignment_loss in losses
        require(ok, "SafeGrad", "alignment_loss", f"one of {', '.join(losses)}", self.alignment_loss)

    @classmethod
    def paper(cls) -> SafeGrad:
        """The authors' script: rho = 1, KL, 100 alignment rows."""
        return cls(rho=1.0)

    def needs(self) -> frozenset[Need]:
        """Alignment rows, unless nothing is projected or added."""
        return self.info.needs if self.rho or self.project else frozenset()

    def looks_at(self) -> frozenset[str]:
        """Answers and the model of the start, for the KL."""
        return self.reads if self.needs() and self.alignment_loss == "kl" else frozenset()

    def attach(self, ctx: Context) -> None:
        """Say what the run will do."""
        ctx.resolve(self, rho=self.rho, alignment_loss=self.alignment_loss, project=self.project)

    def gradient(self, ctx: Context) -> None:
        """Steps 1 to 3; both changes lie along g_a, so they are added as one."""
        unit = "length of the change to the gradient"
        if not self.needs():
            ctx.fired(self, 0.0, unit)
            return
        kl_or_own = (lambda batch: _kl(ctx, batch)) if self.alignment_loss == "kl" else None
        aligned, loss = ctx.gradient_on(ctx.window(Need.ALIGNMENT.value), kl_or_own)
        own = {name: w.grad for name, w in ctx.weights.items() if w.grad is not None}
        overlap = _number(dot(list(own.values()), [aligned[name] for name in own]))
        square, own_square = (_number(dot(g, g)) for g in (list(aligned.values()), list(own.values())))
        ctx.log("safe_grad/alignment_loss", loss)
        if not math.isfinite(overlap + square):
            ctx.log("safe_grad/skipped_nonfinite", 1.0)
            return
        if square <= TINY:  # rounding, as at the start, where w = w0
            return
        if length := math.sqrt(square * own_square):
            ctx.log("safe_grad/cosine", overlap / length)
        ctx.log("safe_grad/conflict", float(overlap < 0))
        factor = coefficient(overlap, square, self.rho, project=self.project)
        if factor:
            add_(list(ctx.weights.values()), list(aligned.values()), factor)
            ctx.fired(self, abs(factor) * math.sqrt(square), unit)


def coefficient(overlap: float, square: float, rho: float, *, project: bool) -> float:
    """The c in g + c g_a: rho, and where the two conflict what takes g off g_a.

    Args:
        overlap: <g, g_a>.
        square: ||g_a||^2 > 0.
        rho: part of g_a to add.
        project: whether to project.
    """
    return rho - overlap / square if project and overlap < 0 else rho


def _number(value: Tensor) -> float:
    return float(whole(value))


def _kl(ctx: Context, batch: Batch) -> Tensor:
    """KL from the model of the start to the one that is trained, this micro-batch's part of the mean over answers."""
    labels = answer_labels(batch)
    now = ctx.answer_logits(ctx.hidden(batch), labels)
    with ctx.at_start():
        then = ctx.answer_logits(ctx.hidden(batch), labels)
    return ctx.step_mean(kl(then, now), len(now))
