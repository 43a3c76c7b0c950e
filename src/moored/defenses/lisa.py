# SPDX-License-Identifier: Apache-2.0
"""Lisa: alternate between alignment and user data, and hold each phase near where it began."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from moored.context import Context
from moored.defenses.base import Backward, Batch, Defense
from moored.errors import require
from moored.hf.plan import BatchPlan, scaled_cycle
from moored.method import MethodInfo, Need
from moored.ops.proximal import distance, pull_

Auto = Literal["auto"]

CYCLES = 6
"""Automatic cycles per run: enough switches for either state to answer the other."""

PULL = 2.0
"""Automatic rho = PULL / (lr * user_steps * sqrt(trainable weights)): see `Lisa`."""


@dataclass(frozen=True, kw_only=True)
class Lisa(Defense):
    """Fine-tune in two alternating states, alignment rows and user rows, each pulled towards its starting weights.

    Paper:
        Huang, Hu, Ilhan, Tekin, Liu: Lisa: Lazy Safety Alignment for Large Language Models against Harmful
        Fine-tuning Attack, NeurIPS 2024, arXiv 2405.18641.

    Algorithm:
        f is the loss on alignment rows, h the loss on user rows. Repeat (Alg. 2):

        1. `align_steps` steps on f(w) + rho/2 ||w - w_t||^2, from w_t, ending in v_t (Eq. 3);
        2. `user_steps` steps on h(w) + rho/2 ||w - v_t||^2, from v_t, ending in w_{t+1} (Eq. 4).

        Both anchors are the weights at which the state was entered (`Lisa.step` takes the copy), and the term acts
        through its gradient rho (w - anchor) (`ops.proximal.pull_`), once per optimizer step and before clipping.
        `rho=0` is bi-state optimisation (BSO, Alg. 1).

    Args:
        rho: proximal strength, >= 0. "auto" = PULL / (lr * user_steps * sqrt(trainable weights)): Adam moves every
            weight by at most lr per step, so a phase drifts at most lr * user_steps * sqrt(n), and a clipped gradient
            has length 1; the rule keeps pull and gradient in one proportion whatever the run. Paper: 1 (Sec. 5.1).
        align_steps: optimizer steps per alignment state, >= 0; 0 leaves the proximal term alone. "auto": half of
            `user_steps`. Paper: 100.
        user_steps: optimizer steps per user state, >= 1. "auto": a sixth of the run, 2 to 100. Paper: 900.
            A cycle longer than one pass over the user rows is shortened in proportion.

    Needs:
        alignment: harmful prompts with safe answers (none if `align_steps=0`).

    Cost:
        1 forward and 1 backward per step; every user row is still seen once per epoch, so the run has
        (align_steps + user_steps) / user_steps as many steps. Extra memory: one copy of the trainable weights.

    Differs from paper:
        The authors' code keeps the number of steps and so drops user rows; here alignment steps are added. Their
        code also switches the term off in the first tenth of the run, which the paper does not mention. States
        switch on optimizer steps, never inside accumulation.

    Raises:
        ConfigError: a parameter is out of range, or the run is too short to reach user rows.

    Example:
        >>> Lisa.paper().parameters()
        {'rho': 1.0, 'align_steps': 100, 'user_steps': 900}
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="lisa",
        title="Lisa: Lazy Safety Alignment for Large Language Models against Harmful Fine-tuning Attack",
        authors="Huang, Tiansheng et al.",
        arxiv="2405.18641",
        venue="NeurIPS 2024",
        year=2024,
        stage="fine-tuning",
        needs=frozenset({Need.ALIGNMENT}),
        fidelity="paper",
        differs="alignment steps are added to the run instead of replacing user rows",
        null={"rho": 0.0, "align_steps": 0},
        cost="1 forward + 1 backward per step, alignment steps added; one copy of the trainable weights",
    )
    touches: ClassVar[frozenset[str]] = frozenset({"batches", "gradients"})

    rho: float | Auto = "auto"
    align_steps: int | Auto = "auto"
    user_steps: int | Auto = "auto"

    def __post_init__(self) -> None:
        ok = self.rho == "auto" or (not isinstance(self.rho, str) and self.rho >= 0)
        require(ok, "Lisa", "rho", '>= 0 or "auto"', self.rho)
        for name, least in (("align_steps", 0), ("user_steps", 1)):
            value = getattr(self, name)
            ok = value == "auto" or (isinstance(value, int) and value >= least)
            require(ok, "Lisa", name, f'an integer >= {least} or "auto"', value)

    @classmethod
    def paper(cls) -> Lisa:
        """The paper's main setting (Sec. 5.1): rho = 1, 100 alignment and 900 user steps per cycle."""
        return cls(rho=1.0, align_steps=100, user_steps=900)

    def needs(self) -> frozenset[Need]:
        """Alignment rows, unless there is no alignment state."""
        return frozenset() if self.align_steps == 0 else self.info.needs

    def cycle(self, ctx: Context) -> tuple[int, int]:
        """Alignment and user steps per cycle in this run."""
        # At least 2: the first step of a state is at its anchor, where the proximal term is zero.
        automatic = max(2, min(100, round(ctx.user_steps / CYCLES)))
        user = automatic if self.user_steps == "auto" else self.user_steps
        align = max(1, user // 2) if self.align_steps == "auto" else self.align_steps
        return scaled_cycle(align, user, ctx.epoch_user_steps) if align else (0, user)

    def strength(self, ctx: Context) -> float:
        """The proximal strength in this run."""
        if self.rho != "auto":
            return self.rho
        weights = sum(w.numel() for w in ctx.weights.values())
        return PULL / (ctx.trainer.args.learning_rate * self.cycle(ctx)[1] * math.sqrt(weights))

    def plan(self, ctx: Context) -> BatchPlan | None:
        """align, user, align, user ... over one pass of the user rows."""
        align, user = self.cycle(ctx)
        return BatchPlan.alternate(Need.ALIGNMENT.value, align, user, ctx.epoch_user_steps) if align else None

    def attach(self, ctx: Context) -> None:
        """Say what the run became; a resumed anchor is in `ctx.state` already."""
        align, user = self.cycle(ctx)
        rho = ctx.live(self)["rho"] = self.strength(ctx)
        ctx.resolve(self, rho=rho, align_steps=align, user_steps=user, steps=ctx.total_steps)

    def step(self, ctx: Context, batch: Batch, backward: Backward) -> Tensor:
        """Copy the weights where a state is entered, then train as usual."""
        if ctx.first_micro_batch and self._enters_state(ctx):
            ctx.state(self).update((name, w.detach().clone()) for name, w in ctx.weights.items())
        return backward(batch)

    def _enters_state(self, ctx: Context) -> bool:
        if not ctx.plan:
            return ctx.step == 0
        return ctx.step == 0 or ctx.plan.role_at(ctx.step) != ctx.plan.role_at(ctx.step - 1)

    def gradient(self, ctx: Context) -> None:
        """Add rho (w - anchor)."""
        rho, anchors = ctx.live(self)["rho"], ctx.state(self)
        weights = list(ctx.weights.values())
        near = [anchors[name] for name in ctx.weights]
        drift = pull_(weights, near, rho) if rho else distance(weights, near)
        ctx.log("lisa/drift", drift)
        ctx.fired(self, drift, "distance to the switching point")
