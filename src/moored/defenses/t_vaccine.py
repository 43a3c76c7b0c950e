# SPDX-License-Identifier: Apache-2.0
"""TVaccine: Vaccine on a few layers at a time, drawn by how strongly harmful rows pull at them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from moored.context import Context
from moored.defenses.base import Backward, Batch, Defense
from moored.defenses.vaccine import under_worst_case
from moored.errors import ConfigError, require
from moored.hf.hooks import (
    attention_modules,
    decoder_layers,
    mlp_modules,
    refuse_reentrant_checkpointing,
    weights_by_layer,
)
from moored.hf.perturber import Perturber
from moored.hf.recompute import Recompute
from moored.method import MethodInfo, Need
from moored.randomness import same_randomness

Auto = Literal["auto"]

DEPTH_PER_LAYER = 4
"""Automatic layers: one in so many, as 8 of the 32 of a 7B model."""

LEAST = 1e-12
"""Smallest score, so that as many layers can be drawn as are asked for."""


@dataclass(frozen=True, kw_only=True)
class TVaccine(Defense):
    """Align under Vaccine's perturbation in a few sampled layers, with all other layers frozen, in less memory.

    Paper:
        Liu, Lin, Huang, Mo, Mu, Shen: Targeted Vaccine: Safety Alignment for Large Language Models against Harmful
        Fine-Tuning via Layer-wise Perturbation, 2024, arXiv 2410.09760.

    Algorithm:
        e_l is the output of the l-th self-attention module, L the loss on the trainer's rows, L_i that on harmful
        row i.

        1. Every `probability_steps` steps: s_l = mean over `probes` harmful rows of ||dL_i/de_l||
           (`TVaccine.scores`), p_l = s_l / sum_k s_k.
        2. Every `sample_steps` steps: draw `layers` layers S without replacement with probabilities p
           (`draw_layers`); freeze the weights of all other layers.
        3. Every micro-batch: g_l = dL/de_l for l in S, eps_l = rho g_l / ||(g_k) for k in S||, forward and backward
           with e_l + eps_l for l in S (`vaccine.under_worst_case`).

        The graph begins at the first layer (its input is detached), so below the lowest sampled layer nothing needs
        a gradient and no activation is kept. Above it, what activation functions put out is computed again for
        backward (`hf.recompute`), to the bit; not with activation checkpointing or offloading, nor with torch.compile.

    Args:
        rho: radius of the perturbation in activation units, >= 0; 0 perturbs nothing. As in `Vaccine` it is shared
            by a micro-batch and does not transfer between batch sizes. Authors' script: 3.
        layers: how many layers are sampled at a time, >= 1. "auto": a quarter of them. None: all in every step and
            nothing frozen, which is Vaccine. Authors' script: 8, of 32.
        sample_steps: optimizer steps between draws, >= 1. Authors' script: 20.
        probability_steps: optimizer steps between probes, >= 1. Authors' script: 200.
        probes: harmful rows per probe, >= 1. Authors' code: 1.

    Needs:
        harmful: rows that are probed and never learnt from (none if `layers=None`).

    Cost:
        2 forward and 2 backward passes per step, of which the backward passes end at the lowest sampled layer;
        `probes` single-row passes per probe. Extra memory: one activation per sampled attention module; activations
        below the lowest sampled layer are saved.

    Differs from paper:
        The intended method, where the authors' code does otherwise: scores are averaged over `probes` rows, not
        taken from one; whole blocks outside of S are frozen, not their attention alone; memory falls because no
        graph is built, not by checkpointing. Only layers with trained weights are sampled. Weights outside of all
        layers: those above (final norm, output layer) are trained in every step; input embeddings are not trained
        through the input, a tied matrix only through its use as output layer. The two passes use the same dropout
        masks, and accumulated micro-batches add up. As in Vaccine the norm is per micro-batch, so twice the batch is
        not two accumulated micro-batches unless `rho=0`.

    Raises:
        ConfigError: a parameter is out of range, or `layers` is more than the layers with trained weights.
        NeverSupported: reentrant checkpointing.
        NotYetSupported: several processes.

    Example:
        >>> TVaccine.paper().parameters()
        {'rho': 3.0, 'layers': 8, 'sample_steps': 20, 'probability_steps': 200, 'probes': 32}
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="t_vaccine",
        title="Targeted Vaccine: Safety Alignment for Large Language Models against Harmful Fine-Tuning via "
        "Layer-wise Perturbation",
        authors="Liu, Guozhi et al.",
        arxiv="2410.09760",
        venue="arXiv",
        year=2024,
        stage="alignment",
        needs=frozenset({Need.HARMFUL}),
        fidelity="paper",
        differs="scores averaged over 32 rows instead of 1; whole blocks are frozen, not attention alone",
        null={"rho": 0.0, "layers": None},
        cost="2 forward + 2 backward per step, no activations below the lowest sampled layer; 32 row passes per probe",
    )
    touches: ClassVar[frozenset[str]] = frozenset({"activations", "frozen"})

    rho: float = 3.0
    layers: int | Auto | None = "auto"
    sample_steps: int = 20
    probability_steps: int = 200
    probes: int = 32

    def __post_init__(self) -> None:
        require(self.rho >= 0, "TVaccine", "rho", ">= 0", self.rho)
        ok = self.layers in ("auto", None) or (isinstance(self.layers, int) and self.layers >= 1)
        require(ok, "TVaccine", "layers", 'an integer >= 1, "auto" or None', self.layers)
        for name in ("sample_steps", "probability_steps", "probes"):
            require(getattr(self, name) >= 1, "TVaccine", name, "an integer >= 1", getattr(self, name))

    @classmethod
    def paper(cls) -> TVaccine:
        """The authors' script and read-me (not checked against the paper): rho 3, 8 layers, 20 and 200 steps.

        Their 1 probe row is left out: it makes the probabilities those of one random row.
        """
        return cls(rho=3.0, layers=8, sample_steps=20, probability_steps=200)

    def needs(self) -> frozenset[Need]:
        """Harmful rows, unless all layers are perturbed."""
        return frozenset() if self.layers is None else self.info.needs

    def attach(self, ctx: Context) -> None:
        """Find the layers; after a resume, freeze again what was frozen."""
        refuse_reentrant_checkpointing(ctx.model, "TVaccine's gradient would be wrong")
        attention = list(attention_modules(ctx.model).items())
        names = list(weights_by_layer(ctx.model, ctx.weights).values())
        trained = [i for i, own in enumerate(names) if own]
        count = self.count(len(trained))
        live = ctx.live(self)
        live.update(attention=attention, names=names, trained=trained, count=count)
        ctx.resolve(self, layers=count, of=len(trained), rho=self.rho)
        if self.layers is None:
            live["perturber"] = Perturber(dict(attention))
            return
        first = next(iter(decoder_layers(ctx.model).values()))
        live["cut"] = first.register_forward_pre_hook(_detached, with_kwargs=True)
        if Recompute.fits(ctx.trainer.args):
            live["recompute"] = Recompute(mlp_modules(ctx.model))
        if "sampled" in ctx.state(self):
            self._activate(ctx)

    def count(self, trained: int) -> int:
        """Layers sampled at a time, of so many that have trained weights."""
        if self.layers is None:
            return trained
        count = max(1, trained // DEPTH_PER_LAYER) if self.layers == "auto" else self.layers
        if count > trained:
            raise ConfigError(f"TVaccine samples {count} layers, but {trained} layers have trained weights")
        return count

    def step(self, ctx: Context, batch: Batch, backward: Backward) -> Tensor:
        """Probe and draw where it is time, then Vaccine on the drawn layers."""
        if self.layers is not None and ctx.first_micro_batch:
            if ctx.step % self.probability_steps == 0:
                self._probe(ctx)
            if ctx.step % self.sample_steps == 0:
                self._sample(ctx)
        if self.rho == 0:
            ctx.fired(self, 0.0, "length of the perturbation")
            return backward(batch)
        return under_worst_case(self, ctx, batch, backward, perturber=ctx.live(self)["perturber"], rho=self.rho)

    def scores(self, ctx: Context) -> Float[Tensor, " layers"]:
        """s_l of the layers with trained weights; row by row, so that it takes the memory of one row."""
        live = ctx.live(self)
        perturber = Perturber(dict(live["attention"][i] for i in live["trained"]))
        total = torch.zeros(len(live["trained"]), dtype=torch.float64)
        try:
            with same_randomness(ctx.trainer.args.device):
                for row in ctx.window(Need.HARMFUL.value, batches=self.probes, size=1):
                    grads = perturber.gradients(partial(ctx.loss, row, None))
                    total += torch.stack([g.double().norm().cpu() for g in grads.values()])
        finally:
            perturber.remove()
        return total / self.probes

    def _probe(self, ctx: Context) -> None:
        """Take p = s / sum s; scores that are no numbers, or all zero, leave the last p, at first equal shares."""
        scores, state = self.scores(ctx), ctx.state(self)
        state.setdefault("p", torch.full_like(scores, 1 / len(scores)))
        if bool(torch.isfinite(scores).all()) and float(scores.sum()) > 0:
            state["p"] = scores / scores.sum()
        else:
            ctx.log("t_vaccine/skipped_probe", 1.0)

    def _sample(self, ctx: Context) -> None:
        """Draw S and freeze the rest."""
        live, state = ctx.live(self), ctx.state(self)
        drawn = draw_layers(state["p"], live["count"], ctx.generator(shared=True))
        state["sampled"] = torch.tensor([live["trained"][i] for i in drawn])
        ctx.log("t_vaccine/lowest_layer", min(state["sampled"]))
        self._activate(ctx)

    def _activate(self, ctx: Context) -> None:
        """Perturb and train the sampled layers only."""
        live, sampled = ctx.live(self), ctx.state(self)["sampled"].tolist()
        if perturber := live.pop("perturber", None):
            perturber.remove()
        live["perturber"] = Perturber(dict(live["attention"][i] for i in sampled))
        still = [ctx.weights[name] for i, names in enumerate(live["names"]) if i not in sampled for name in names]
        ctx.freezing.freeze(self.info.name, still, ctx.model)

    def finish(self, ctx: Context) -> None:
        """Remove the hooks; the run itself thaws the weights."""
        live = ctx.live(self)
        if perturber := live.pop("perturber", None):
            perturber.remove()
        for hook in ("cut", "recompute"):
            if hook in live:
                live.pop(hook).remove()


def draw_layers(p: Float[Tensor, " layers"], count: int, generator: torch.Generator) -> list[int]:
    """`count` different layers, drawn one after the other with probabilities `p`.

    Args:
        p: probabilities; zeros are drawn last.
        count: how many, at most as many as there are.
        generator: of the draw.
    """
    return sorted(torch.multinomial(p.double().cpu().clamp(min=LEAST), count, generator=generator).tolist())


def _detached(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The first layer's input without its graph, so that frozen layers have nothing to differentiate."""
    if args:
        return (args[0].detach(), *args[1:]), kwargs
    return args, kwargs | {"hidden_states": kwargs["hidden_states"].detach()}
