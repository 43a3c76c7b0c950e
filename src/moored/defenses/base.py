# SPDX-License-Identifier: Apache-2.0
"""The contract of defences: a frozen configuration with hooks that by default do nothing.

A defence holds no state of its own. What changes during training lives in the `Context`: tensors that must survive a
resume in `ctx.state(self)`, live objects (hooks, buffers) in `ctx.live(self)`, evidence that it acted in `ctx.fired`.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import Tensor

from moored.context import Context
from moored.hf.plan import BatchPlan
from moored.method import MethodInfo, Need

Batch = dict[str, Any]
"""One micro-batch, as the trainer's collator made it."""

Backward = Callable[[Batch], Tensor]
"""The trainer's own forward, loss and backward on one micro-batch; returns the detached loss."""


@dataclass(frozen=True, kw_only=True)
class Defense(ABC):
    """Base of defences.

    The seams, in the order in which a run meets them:

    `curate` (what is trained on) · `plan` (which role feeds which step) · `attach` (hooks into the model) ·
    `step` (each micro-batch) · `gradient` (once per optimizer step, gradients accumulated and not yet clipped) ·
    `updated` (after the optimizer) · `finish` (undo all that `attach` did; also runs after an exception).
    """

    info: ClassVar[MethodInfo]
    touches: ClassVar[frozenset[str]] = frozenset()
    """What the defence edits: "batches", "activations", "gradients", "rows". Decides which trainers are refused."""

    def needs(self) -> frozenset[Need]:
        """Roles that this configuration cannot work without."""
        return self.info.needs

    def parameters(self) -> dict[str, Any]:
        """The configuration as plain JSON, for checkpoints and reports."""
        return asdict(self)

    def tells_rows_apart(self) -> bool:
        """Whether this configuration needs every line of a batch to hold one row, not several packed into it."""
        return False

    def curate(self, rows: Any, roles: Mapping[str, Any], seed: int) -> Any:
        """The dataset to train on instead of `rows`; all are prepared by the trainer already."""
        return rows

    def plan(self, ctx: Context) -> BatchPlan | None:
        """Which role feeds which optimizer step; None leaves the trainer's own loader alone."""
        return None

    def attach(self, ctx: Context) -> None:
        """Start of training, weights and optimizer in place."""

    def step(self, ctx: Context, batch: Batch, backward: Backward) -> Tensor:
        """One micro-batch. Must call `backward` exactly once on what is to be learnt."""
        return backward(batch)

    def gradient(self, ctx: Context) -> None:
        """Gradients of the whole optimizer step stand in `p.grad`, before clipping."""

    def updated(self, ctx: Context) -> None:
        """The optimizer has stepped."""

    def finish(self, ctx: Context) -> None:
        """End of training, also after an exception."""


BASE = Defense
