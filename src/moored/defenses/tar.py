# SPDX-License-Identifier: Apache-2.0
"""TAR: train through simulated attacks, so that what they reach stays useless."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from moored.context import Context
from moored.defenses.base import Batch, Defense
from moored.errors import require
from moored.hf.hooks import decoder_layers
from moored.hf.reader import answer_labels, predicting
from moored.method import MethodInfo, Need
from moored.ops.entropy import entropy
from moored.ops.gradient import add_, wide
from moored.ops.perturb import length

Auto = Literal["auto"]

GRID = (0.1, 1.0, 2.0)
"""Automatic learning rates of the attack, in units of the trainer's own: the proportion in the authors' scripts."""


@dataclass(frozen=True, kw_only=True)
class TAR(Defense):
    """In every step simulate a fine-tuning attack, and learn from the gradient at the weights that it reaches.

    Paper:
        Tamirisa, Bharathi, Phan et al.: Tamper-Resistant Safeguards for Open-Weight LLMs, ICLR 2025,
        arXiv 2408.00761.

    Algorithm:
        min_w lam E_attack[L_TR(attack(w))] + L(w) + retain D(w), where L is the trainer's own loss on its own rows.
        Once per optimizer step (`TAR.gradient`), from a copy of the weights w_0 = w:

        1. `inner_steps` AdamW steps on the loss of harmful rows, w_0 -> w_1 -> ... -> w_K, with a fresh optimizer and
           one learning rate drawn from `inner_lr` (`TAR.resistance`);
        2. after every `read_every`-th step k + 1, G += exp(growth (k - K + 1)) grad L_TR(w_{k+1}) on held-out harmful
           rows, the same for all k; L_TR = -mean_t H(p_t), the negative entropy of the next-token distribution at
           the answer tokens (`ops.entropy.entropy`);
        3. back at w, lam G is added to the gradient (`ops.gradient.add_`): first order, the derivative of the attack
           with respect to w is left out.

        D keeps the representations (`TAR.loss`): mean over answer tokens and decoder layers of
        ||h_l(w) - h_l(w_start)||^2.

    Args:
        lam: strength of tamper resistance, >= 0; 0 is plain training, without D. Authors' scripts: 4.
        inner_steps: K, attack steps per optimizer step, >= 1. Authors' scripts: 64; the default is ours.
        inner_lr: learning rates of the attack, > 0, one or several to draw from. "auto": 0.1, 1 and 2 times the
            trainer's. Authors' scripts: 2e-6, 2e-5, 4e-5 beside 2e-5.
        read_every: attack steps between readings of L_TR, 1 to K. Authors' scripts: 4.
        growth: how fast the weight of a reading grows along the attack, >= 0. Authors' scripts: 1/16.
        retain: strength of D, >= 0; 0 saves its forward pass. Authors' scripts: 1.
        every: attack in every so many optimizer steps, >= 1; L and D stay in all. Ours; the authors always attack.

    Needs:
        harmful: harmful prompts with harmful answers (none if `lam=0`). Rows of the trainer: what is to be retained.

    Cost:
        K + K / read_every forward and backward passes more per attacked step, 1 forward more for D. Extra memory:
        eight copies of the trainable weights, one activation per layer.

    Differs from paper:
        Attacks train what the trainer trains, so adapters attack adapters; the authors attack all weights. One
        kind of attack; the authors also draw ones that begin on benign rows, and other data sets. L_TR reads answer
        tokens only (their code: every position, padding too); the form with preference pairs is not here, nor the
        random mapping that precedes it. D is on answer tokens and squared, as secondary sources give the paper's
        equation (their code: all tokens, not squared), and its reference is the start of this run. The optimizer is
        the trainer's (theirs: ScheduleFree AdamW). All passes of one attack share their dropout masks.

    Raises:
        ConfigError: a parameter is out of range.
        NotYetSupported: trainers of answer pairs (DPO), `use_liger_kernel`.

    Example:
        >>> TAR.paper().inner_steps
        64
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="tar",
        title="Tamper-Resistant Safeguards for Open-Weight LLMs",
        authors="Tamirisa, Rishub et al.",
        arxiv="2408.00761",
        venue="ICLR 2025",
        year=2025,
        stage="alignment",
        needs=frozenset({Need.HARMFUL}),
        fidelity="simplified",
        differs="one kind of attack, on what the trainer trains; entropy at answer tokens; no random mapping before it",
        null={"lam": 0.0},
        cost="K + K / read_every forward + backward more per attacked step; eight copies of the trainable weights",
    )
    touches: ClassVar[frozenset[str]] = frozenset({"gradients"})
    reads: ClassVar[frozenset[str]] = frozenset({"answers", "start"})

    lam: float = 4.0
    inner_steps: int = 8
    inner_lr: float | tuple[float, ...] | Auto = "auto"
    read_every: int = 4
    growth: float = 0.0625
    retain: float = 1.0
    every: int = 1

    def __post_init__(self) -> None:
        for name in ("lam", "growth", "retain"):
            require(getattr(self, name) >= 0, "TAR", name, ">= 0", getattr(self, name))
        for name in ("inner_steps", "every"):
            require(getattr(self, name) >= 1, "TAR", name, "an integer >= 1", getattr(self, name))
        in_range = 1 <= self.read_every <= self.inner_steps
        require(in_range, "TAR", "read_every", f"1 to inner_steps = {self.inner_steps}", self.read_every)
        given = () if isinstance(self.inner_lr, str) else self._given()
        ok = self.inner_lr == "auto" or (len(given) > 0 and all(rate > 0 for rate in given))
        require(ok, "TAR", "inner_lr", 'one or several rates > 0 or "auto"', self.inner_lr)

    @classmethod
    def paper(cls) -> TAR:
        """The authors' script for biosecurity (run_tar_bio.sh), whose attacks train all weights of an 8B model."""
        return cls(lam=4.0, inner_steps=64, inner_lr=(2e-6, 2e-5, 4e-5), read_every=4, growth=0.0625, retain=1.0)

    def needs(self) -> frozenset[Need]:
        """Harmful rows, unless nothing is simulated."""
        return self.info.needs if self.lam else frozenset()

    def rates(self, ctx: Context) -> tuple[float, ...]:
        """The learning rates that attacks draw from in this run."""
        own = ctx.trainer.args.learning_rate
        return tuple(own * factor for factor in GRID) if self.inner_lr == "auto" else self._given()

    def _given(self) -> tuple[float, ...]:
        return self.inner_lr if isinstance(self.inner_lr, tuple) else (float(self.inner_lr),)

    def attach(self, ctx: Context) -> None:
        """Say what the run became; read every layer if D is on."""
        layers = ctx.live(self)["layers"] = decoder_layers(ctx.model) if self.lam and self.retain else {}
        if layers:
            ctx.read(layers)
        ctx.resolve(self, inner_lr=list(self.rates(ctx)), layers=len(layers))

    def loss(self, ctx: Context, batch: Batch, own: Tensor) -> Tensor:
        """L + retain D on one micro-batch."""
        layers = ctx.live(self)["layers"]
        if not layers:
            return own
        picked = predicting(answer_labels(batch))
        with ctx.at_start():
            start = ctx.features(batch)
        gaps = [(ctx.seen(name)[picked] - start[name][picked]).float().square().sum() for name in layers]
        total = torch.stack(gaps).mean()
        ctx.log("tar/retained_drift", total.detach() / picked.sum().clamp(min=1))
        return own + self.retain * ctx.step_mean(total, picked.sum())

    def gradient(self, ctx: Context) -> None:
        """Add lam G."""
        unit = "length of what is added to the gradient"
        if not self.lam:
            ctx.fired(self, 0.0, unit)
            return
        if ctx.step % self.every:
            return
        resistance = self.resistance(ctx)
        norm = self.lam * length(resistance)
        if not bool(torch.isfinite(norm)):
            ctx.log("tar/skipped_nonfinite", 1.0)
            return
        add_(list(ctx.weights.values()), resistance, self.lam)
        ctx.log("tar/resistance", norm)
        if norm > 0:
            ctx.fired(self, norm, unit)

    def resistance(self, ctx: Context) -> list[Tensor]:
        """G of one simulated attack; the weights are as before afterwards."""
        turns = self.inner_steps + 1
        *attack, held_out = [ctx.window(Need.HARMFUL.value, turn=k, turns=turns) for k in range(turns)]
        point = {name: wide(w).clone() for name, w in ctx.weights.items()}
        total = [torch.zeros_like(w) for w in point.values()]
        adversary = torch.optim.AdamW(list(point.values()), lr=self._rate(ctx))
        for k, batches in enumerate(attack):
            with ctx.standing_at(point):
                grads, harm = ctx.gradient_on(batches)
            for name, w in point.items():
                w.grad = grads[name].to(w.dtype)
            adversary.step()
            if (k + 1) % self.read_every == 0:
                with ctx.standing_at(point):
                    grads, tampered = ctx.gradient_on(held_out, partial(self._negative_entropy, ctx))
                share = math.exp(self.growth * (k + 1 - self.inner_steps))
                torch._foreach_add_(total, [grads[name].to(w.dtype) for name, w in point.items()], alpha=share)
        ctx.log("tar/attack_loss", harm)
        ctx.log("tar/entropy_after_attack", -tampered)
        return total

    def _rate(self, ctx: Context) -> float:
        """Drawn by seed and step alone: equal on all processes and after a resume."""
        rates: Sequence[float] = self.rates(ctx)
        return rates[int(torch.randint(len(rates), (), generator=ctx.generator(shared=True)))]

    def _negative_entropy(self, ctx: Context, batch: Batch) -> Tensor:
        labels = answer_labels(batch)
        logits = ctx.answer_logits(ctx.hidden(batch), labels)
        return -ctx.step_mean(entropy(logits), predicting(labels).sum())
