# SPDX-License-Identifier: Apache-2.0
"""SMART: keep next-token distributions smooth around the inputs and near those of an average of the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from moored.context import Context
from moored.defenses.base import Backward, Batch, Defense
from moored.errors import require
from moored.hf.hooks import in_evaluation, own_model
from moored.hf.perturber import Perturber
from moored.hf.reader import answer_labels
from moored.method import MethodInfo
from moored.ops.divergence import symmetric_kl
from moored.ops.gradient import wide
from moored.randomness import random_state, same_randomness, set_random_state

EMBEDDING = "embedding"
"""What the perturber calls the input embedding."""


@dataclass(frozen=True, kw_only=True)
class SMART(Defense):
    """Smoothness-inducing adversarial regularisation, and Bregman proximal point optimisation with a mean teacher.

    Paper:
        Jiang et al.: SMART: Robust and Efficient Fine-Tuning for Pre-trained Natural Language Models through
        Principled Regularized Optimization, ACL 2020, arXiv 1911.03437.

    Algorithm:
        f(x; w) is the next-token distribution, x the input embeddings, l_s(p, q) = KL(p || q) + KL(q || p), mean over
        answer tokens (`ops.divergence.symmetric_kl`, `Context.step_mean`). The loss of a micro-batch (`SMART.loss`) is

            L(w) + lam max_{||x' - x||_inf <= eps} l_s(f(x'; w), f(x; w)) + mu l_s(f(x; w), f(x; w~)).

        1. x' = x + N(0, sigma^2); `steps` times: g = d l_s(f(x'; w), f(x; w)) / dx', then x' <- the nearest point of
           the eps-box to x' + eta g / ||g||_inf, with one norm per token (`ascended`; f(x; w) is held fixed);
        2. the middle term at this x', differentiated through both of its distributions;
        3. the last term at the teacher w~, in evaluation mode, without gradients. After every optimizer step
           w~ <- beta w~ + (1 - beta) w (`SMART.updated`); at the start w~ = w.

    Args:
        lam: strength of the smoothness term, >= 0 [loss per nat]; 0 leaves it out.
        mu: strength of the proximal term, >= 0 [loss per nat]; 0 leaves it out.
        eps: half the width of the box, > 0.
        sigma: standard deviation of the first displacement, > 0: at x' = x the gradient is zero.
        eta: length of an ascent step in its largest coordinate, > 0.
        steps: ascent steps, an integer >= 1.
        beta: what the teacher keeps of itself at every optimizer step, 0-1; 0: the weights of the last step.
        relative: whether `eps`, `sigma` and `eta` are in units of the root mean square of each token's own
            embedding, or absolute. Models differ a hundredfold in that size, and bf16 rounds away what is
            far below 1 % of an embedding.

    Needs:
        Nothing: the trainer's own rows.

    Cost:
        Per micro-batch: (1 + steps) forward and as many backward passes more for the smoothness term, 1 forward for the
        proximal term. Extra memory: the activations of one more pass; two copies of the trainable weights (the
        teacher's, in fp32, and one for the exchange).

    Differs from paper:
        Written for classifiers, where one distribution belongs to a row; here there is one per answer token. The
        defaults are ours; see `paper`. The authors' code never projects (its perturbation ends with a largest
        coordinate of about 1), detaches each distribution in turn, and holds no teacher; here all three are as in the
        equations. The clean and the displaced pass share their dropout masks.

    Raises:
        ConfigError: a parameter is out of range.
        NeverSupported: reentrant checkpointing.
        NotYetSupported: a trainer of preferences.
        NeverFired: rounding swallowed the displacement and there was no other term.

    Example:
        >>> SMART(mu=0.0).parameters()["lam"]
        1.0
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="smart",
        title="SMART: Robust and Efficient Fine-Tuning for Pre-trained Natural Language Models through Principled "
        "Regularized Optimization",
        authors="Jiang, Haoming et al.",
        arxiv="1911.03437",
        venue="ACL 2020",
        year=2020,
        stage="fine-tuning",
        fidelity="variant",
        differs="one distribution per answer token instead of one per row; sizes relative to the embeddings",
        null={"lam": 0.0, "mu": 0.0},
        cost="4 forward + 3 backward per micro-batch; two copies of the trainable weights",
    )
    touches: ClassVar[frozenset[str]] = frozenset({"activations"})
    reads: ClassVar[frozenset[str]] = frozenset({"answers"})

    lam: float = 1.0
    mu: float = 1.0
    eps: float = 0.05
    sigma: float = 0.02
    eta: float = 0.05
    steps: int = 1
    beta: float = 0.99
    relative: bool = True

    def __post_init__(self) -> None:
        for name in ("lam", "mu"):
            require(0 <= getattr(self, name) < math.inf, "SMART", name, ">= 0", getattr(self, name))
        for name in ("eps", "sigma", "eta"):
            require(0 < getattr(self, name) < math.inf, "SMART", name, "> 0", getattr(self, name))
        require(self.steps >= 1, "SMART", "steps", "an integer >= 1", self.steps)
        require(0 <= self.beta <= 1, "SMART", "beta", "in 0-1", self.beta)

    @classmethod
    def paper(cls) -> SMART:
        """The values eps = sigma = 1e-5, eta = 1e-3, lam = mu = 1, one step, beta = 0.99, absolute.

        From memory of the paper, not checked against it. In bf16 a displacement of 1e-5 is rounded away.
        """
        return cls(eps=1e-5, sigma=1e-5, eta=1e-3, relative=False)

    def looks_at(self) -> frozenset[str]:
        """The answers, unless both terms are left out."""
        return self.reads if self.lam or self.mu else frozenset()

    def attach(self, ctx: Context) -> None:
        """Hook the input embedding; start the teacher at the weights as they are, unless a checkpoint had one."""
        if self.lam:
            embedding = {EMBEDDING: own_model(ctx.model).get_input_embeddings()}
            ctx.live(self)["perturber"] = Perturber(embedding)
            ctx.read(embedding)
        if self.mu and not ctx.state(self):
            ctx.state(self).update((name, wide(w).clone()) for name, w in ctx.weights.items())
        ctx.resolve(self, lam=self.lam, mu=self.mu)

    def step(self, ctx: Context, batch: Batch, backward: Backward) -> Tensor:
        """Note where the trainer's own pass stands in the random streams, for passes with the same dropout masks."""
        args, live = ctx.trainer.args, ctx.live(self)
        if self.lam and ctx.first_micro_batch:
            live["noise"] = ctx.generator(shared=False)
        live["before"] = random_state(args.device)
        return backward(batch)

    def loss(self, ctx: Context, batch: Batch, own: Tensor) -> Tensor:
        """Add both terms."""
        unit = "what is added to the loss [nat per answer token]"
        if not self.looks_at():
            ctx.fired(self, 0.0, unit)
            return own
        labels = answer_labels(batch)
        clean = ctx.answer_logits(ctx.seen(), labels)
        count = len(clean)
        added = clean.new_zeros(())
        if self.lam:
            smooth = self._smoothness(ctx, batch, labels, clean)
            ctx.log("smart/smoothness", smooth.detach() / max(count, 1))
            added = added + self.lam * smooth
        if self.mu:
            near = self._proximity(ctx, batch, labels, clean)
            ctx.log("smart/proximity", near.detach() / max(count, 1))
            added = added + self.mu * near
        norm = float(added.detach()) / max(count, 1)
        if not math.isfinite(norm):
            ctx.log("smart/skipped_nonfinite", 1.0)
            return own
        if norm > 0:  # rounding may swallow the displacement, and at the start the teacher is the model itself
            ctx.fired(self, norm, unit)
        return own + ctx.step_mean(added, count)

    def _smoothness(self, ctx: Context, batch: Batch, labels: Tensor, clean: Tensor) -> Float[Tensor, ""]:
        """Steps 1 and 2, summed over answer tokens."""
        live, device = ctx.live(self), ctx.trainer.args.device
        perturber: Perturber = live["perturber"]
        embedded = wide(ctx.seen(EMBEDDING))
        unit = embedded.square().mean(-1, keepdim=True).sqrt() if self.relative else 1.0
        moved_by = self.sigma * unit * _noise(embedded, batch.get("attention_mask"), live["noise"])

        def divergence(eps: Tensor, other: Tensor) -> Tensor:
            perturber.apply({EMBEDDING: eps})
            set_random_state(live["before"], device)
            return symmetric_kl(ctx.answer_logits(ctx.hidden(batch), labels), other)

        try:
            with same_randomness(device):
                for _ in range(self.steps):
                    moved_by.requires_grad_()
                    (uphill,) = torch.autograd.grad(divergence(moved_by, clean.detach()), moved_by)
                    moved_by = ascended(moved_by.detach(), uphill, self.eta * unit, self.eps * unit)
                return divergence(moved_by, clean)
        finally:
            perturber.rest()  # the embedding is not recomputed under checkpointing, so backward needs no hook

    def _proximity(self, ctx: Context, batch: Batch, labels: Tensor, clean: Tensor) -> Float[Tensor, ""]:
        """Step 3, summed over answer tokens."""
        with torch.no_grad(), in_evaluation(ctx.model), ctx.standing_at(ctx.state(self)):
            teacher = ctx.answer_logits(ctx.hidden(batch), labels)
        return symmetric_kl(clean, teacher)

    def updated(self, ctx: Context) -> None:
        """Move the teacher."""
        for name, kept in ctx.state(self).items():
            kept.lerp_(wide(ctx.weights[name]), 1 - self.beta)

    def finish(self, ctx: Context) -> None:
        """Remove the hook."""
        if perturber := ctx.live(self).pop("perturber", None):
            perturber.remove()


def ascended(
    moved_by: Float[Tensor, "lines length width"],
    uphill: Float[Tensor, "lines length width"],
    eta: Tensor | float,
    eps: Tensor | float,
) -> Float[Tensor, "lines length width"]:
    """One projected ascent step per token: the nearest point of the box |.| <= eps to moved_by + eta g / ||g||_inf.

    Args:
        moved_by: displacement of every token's embedding.
        uphill: g; a token that no answer depends on has none and stays.
        eta: length of the step.
        eps: half the width of the box.
    """
    largest = uphill.abs().amax(-1, keepdim=True)
    moved = moved_by + eta * uphill / largest.where(largest > 0, 1.0)
    box = torch.as_tensor(eps, dtype=moved.dtype, device=moved.device)
    return torch.minimum(torch.maximum(moved, -box), box)


def _noise(
    like: Float[Tensor, "lines length width"], mask: Any, generator: torch.Generator
) -> Float[Tensor, "lines length width"]:
    """Standard normal noise on real tokens, zero on padding, whose length then changes no draw."""
    plain = mask is not None and mask.shape == like.shape[:2]  # packed lines have no padding, or a mask per pair
    real = mask.bool() if plain else torch.ones(like.shape[:2], dtype=torch.bool, device=like.device)
    drawn = torch.zeros_like(like)
    drawn[real] = torch.randn(int(real.sum()), like.shape[-1], generator=generator, device=like.device).to(like.dtype)
    return drawn
