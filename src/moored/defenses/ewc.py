# SPDX-License-Identifier: Apache-2.0
"""EWC: hold each weight near its start, the more firmly the more the alignment loss depends on it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from moored.context import Context
from moored.defenses.base import Batch, Defense
from moored.errors import DataError, require
from moored.hf.sharding import require_whole
from moored.method import MethodInfo, Need
from moored.ops.gradient import add_, dot, wide
from moored.ops.perturb import length
from moored.randomness import same_randomness

Auto = Literal["auto"]
Fisher = Literal["row", "batch"]

PULL = 2.0
"""Automatic lam = PULL / (lr * steps * sqrt(trainable weights) * mean F): see `EWC`."""


@dataclass(frozen=True, kw_only=True)
class EWC(Defense):
    """Elastic weight consolidation: a quadratic penalty on leaving the start, weighted by the Fisher information.

    Paper:
        Kirkpatrick et al.: Overcoming catastrophic forgetting in neural networks, PNAS 2017, arXiv 1612.00796. As a
        baseline against harmful fine-tuning: Vaccine (arXiv 2402.01109) and Lisa (arXiv 2405.18641).

    Algorithm:
        L(w) + lam/2 sum_i F_i (w_i - w0_i)^2, where w0 are the weights at the start of the run.

        1. once, at the start: F = 1/n sum_r (dl_r/dw)^2 over the n alignment rows, squared entry by entry, where l_r
           is the trainer's own loss on row r alone, dropout off (`EWC.fisher_of`);
        2. every optimizer step: lam F (w - w0) is added to the accumulated gradient, before clipping
           (`EWC.gradient`, `ops.gradient.add_`).

    Args:
        lam: strength, >= 0; 0 is plain training. F is a mean of squared gradients, about (gradient length)^2 / weights
            per entry and thus tiny, so useful values are huge and belong to one model, one loss and one `fisher`.
            "auto" = PULL / (lr * steps * sqrt(trainable weights) * mean F): with the mean of F for F it is the rule
            of `Lisa`'s rho over the whole run. Baseline: 1e9 on a sum over batches, without the half; see `paper`.
        fisher: "row" squares the gradient of each row; "batch" squares the mean gradient of each batch of the
            trainer's size, as the baseline does, which is smaller by up to the batch size and depends on it.

    Needs:
        alignment: harmful prompts with safe answers, for F (none if `lam=0`).

    Cost:
        1 forward and 1 backward per step; once, one forward and backward per alignment row. Extra memory: two copies
        of the trainable weights, F in fp32. No activation checkpointing while F is computed, one row at a time.

    Differs from paper:
        F is the empirical Fisher (answers from the data, not drawn from the model) of the trainer's own loss, which
        for language models is a mean over tokens. The baseline's code sums over batches, keeps dropout on, leaves out
        the half and leaks its last Fisher gradient into the first step; here none of that. At the first step the
        penalty is zero, as w = w0, so a run of one step is not defended and says so.

    Raises:
        ConfigError: a parameter is out of range.
        DataError: the alignment rows have no gradient, or one that is not finite.
        NotYetSupported: FSDP; `fisher="row"` where the trainer packs several rows into a line.

    Example:
        >>> EWC(lam=1e6).parameters()
        {'lam': 1000000.0, 'fisher': 'row'}
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="ewc",
        title="Overcoming catastrophic forgetting in neural networks",
        authors="Kirkpatrick, James et al.",
        arxiv="1612.00796",
        venue="PNAS 2017",
        year=2017,
        stage="fine-tuning",
        needs=frozenset({Need.ALIGNMENT}),
        fidelity="variant",
        differs="empirical Fisher of the trainer's own loss on alignment rows",
        null={"lam": 0.0},
        cost="1 forward + 1 backward per step, once over the alignment rows; two copies of the trainable weights",
    )
    touches: ClassVar[frozenset[str]] = frozenset({"gradients"})
    reads: ClassVar[frozenset[str]] = frozenset({"start"})

    lam: float | Auto = "auto"
    fisher: Fisher = "row"

    def __post_init__(self) -> None:
        ok = self.lam == "auto" or (not isinstance(self.lam, str) and 0 <= self.lam < math.inf)
        require(ok, "EWC", "lam", '>= 0 or "auto"', self.lam)
        require(self.fisher in get_args(Fisher), "EWC", "fisher", "one of row, batch", self.fisher)

    @classmethod
    def paper(cls) -> EWC:
        """The scripts of the git-disl/Vaccine baseline, not the EWC paper, which trains no language model.

        They have 1e9 without the half on the sum over 400 batches of 5 rows; as lam on the mean that is
        2 * 400 * 1e9 = 8e11, which holds for such batches only.
        """
        return cls(lam=8e11, fisher="batch")

    def needs(self) -> frozenset[Need]:
        """Alignment rows, unless there is no penalty."""
        return frozenset() if self.lam == 0 else self.info.needs

    def looks_at(self) -> frozenset[str]:
        """The weights of the start, unless there is no penalty."""
        return self.reads if self.lam else frozenset()

    def tells_rows_apart(self) -> bool:
        """Where every row has a squared gradient of its own."""
        return self.lam != 0 and self.fisher == "row"

    def attach(self, ctx: Context) -> None:
        """Compute F, unless a checkpoint had it: the weights have moved since."""
        if self.lam == 0:
            return
        require_whole("EWC", ctx.weights.values())
        fisher = ctx.state(self)
        if not fisher:
            fisher.update(self.fisher_of(ctx))
        mean = _mean(list(fisher.values()))
        if not 0 < mean < math.inf:
            raise DataError(f"the alignment rows give EWC a mean squared gradient of {mean}; they must teach something")
        lam = ctx.live(self)["lam"] = self._strength(ctx, mean)
        ctx.resolve(self, lam=lam, mean_fisher=mean, rows=len(ctx.rows(Need.ALIGNMENT.value)))

    def fisher_of(self, ctx: Context) -> dict[str, Tensor]:
        """The diagonal Fisher information of the alignment rows at the weights as they stand, in fp32."""
        names, weights = list(ctx.weights), list(ctx.weights.values())
        total = [torch.zeros_like(wide(w)) for w in weights]
        accelerator, args = ctx.trainer.accelerator, ctx.trainer.args
        count = 0
        with same_randomness(args.device):
            for i, batch in enumerate(self._parts(ctx)):
                count += 1
                if i % args.world_size != args.process_index:
                    continue
                loss = ctx.loss(batch, None, dropout=False)
                for square, g in zip(total, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
                    if g is not None:
                        square.addcmul_(wide(g), wide(g))
        summed = [accelerator.reduce(square, reduction="sum") if args.world_size > 1 else square for square in total]
        return {name: square.div_(count) for name, square in zip(names, summed, strict=True)}

    def _parts(self, ctx: Context) -> Iterator[Batch]:
        """The alignment rows, one by one or in batches of the trainer's size."""
        role = Need.ALIGNMENT.value
        if self.fisher == "batch":
            yield from ctx.every_batch(role)
        else:
            for row in range(len(ctx.rows(role))):
                yield ctx.collate(role, [row])

    def _strength(self, ctx: Context, mean: float) -> float:
        if self.lam != "auto":
            return self.lam
        weights = sum(w.numel() for w in ctx.weights.values())
        return PULL / (ctx.trainer.args.learning_rate * ctx.total_steps * math.sqrt(weights) * mean)

    def gradient(self, ctx: Context) -> None:
        """Add lam F (w - w0)."""
        unit = "length of the penalty's gradient"
        if self.lam == 0:
            ctx.fired(self, 0.0, unit)
            return
        lam, fisher = ctx.live(self)["lam"], ctx.state(self)
        gaps = [wide(w) - wide(ctx.start[name]) for name, w in ctx.weights.items()]
        pulls = [lam * fisher[name] * gap for name, gap in zip(ctx.weights, gaps, strict=True)]
        norm = length(pulls)
        ctx.log("ewc/drift", length(gaps))
        ctx.log("ewc/penalty", 0.5 * dot(pulls, gaps))
        add_(list(ctx.weights.values()), pulls)
        if norm > 0:  # at the start of the run there is nothing to pull back
            ctx.fired(self, norm, unit)


def _mean(tensors: list[Tensor]) -> float:
    """Over all entries of all tensors; exact between tensors, because a checkpoint gives them in another order."""
    total = math.fsum(float(t.sum(dtype=torch.float64)) for t in tensors)
    return total / sum(t.numel() for t in tensors)
