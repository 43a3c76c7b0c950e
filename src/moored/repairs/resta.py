# SPDX-License-Identifier: Apache-2.0
"""RESTA: add back the direction from an unsafe twin to the aligned model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from moored.errors import require
from moored.method import MethodInfo, Need
from moored.repairs.base import Delta, Form, Layer, LayerScore, Repair, every


@dataclass(frozen=True, kw_only=True)
class RESTA(Repair):
    """Add to the tuned model what separates the aligned model from its own unsafe twin.

    Paper:
        Bhardwaj, Anh, Poria: Language Models are Homer Simpson! Safety Re-Alignment of Fine-tuned Language Models
        through Task Arithmetic, ACL 2024, arXiv 2402.11746.

    Algorithm:
        theta = theta_f + gamma (theta_a - theta_u), where the twin theta_u is the aligned model after tuning on a few
        unsafe rows. On updates: delta <- delta_f - gamma delta_u, with factors end to end
        (`Delta.plus`), which is the exact sum; adding A and B factor by factor, as is often done, adds cross terms.

    Args:
        gamma: >= 0; 0 changes nothing. Reimplementations: 0.5 on adapters, and 1 with a twin of 100 unsafe rows.

    Needs:
        `unaligned`, the twin: an adapter on the aligned model, or (for a full model, or with merging) a full model.

    Cost:
        One read of both updates. The rank of an adapter becomes the sum of the two.

    Differs from paper:
        Without its optional DARE step on the tuned update; do that first with `DARE`.

    Raises:
        ConfigError: `gamma` is negative.
        NeedsError: the twin is missing.
        CheckpointError: it was tuned on none of the modules.

    Example:
        >>> repair("adapter", RESTA(), unaligned="twin-adapter", out="repaired")  # doctest: +SKIP
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="resta",
        title="Language Models are Homer Simpson! Safety Re-Alignment of Fine-tuned Language Models through Task "
        "Arithmetic",
        authors="Bhardwaj et al.",
        arxiv="2402.11746",
        venue="ACL",
        year=2024,
        stage="post-fine-tuning",
        needs=frozenset({Need.UNALIGNED}),
        fidelity="paper",
        differs="its optional DARE step is a repair of its own",
        null={"gamma": 0.0},
        cost="reads both updates once; the ranks add up",
    )
    strengths: ClassVar[Mapping[str, Sequence[Any]]] = {"gamma": (0.25, 0.5, 1.0)}
    every_tensor: ClassVar[bool] = True

    gamma: float = 0.5

    def __post_init__(self) -> None:
        """Validate."""
        require(0 <= self.gamma < float("inf"), "RESTA", "gamma", ">= 0 and finite", self.gamma)

    @classmethod
    def paper(cls) -> RESTA:
        """What SOMF's authors run, gamma = 0.5; the paper's own value could not be read."""
        return cls(gamma=0.5)

    @property
    def form(self) -> Form:
        """Factors of both."""
        return "more"

    def select(self, scores: Sequence[LayerScore]) -> set[str]:
        """Every layer."""
        return every(scores) if self.gamma else set()

    def edit(self, layer: Layer, score: LayerScore) -> Delta:
        """The update less gamma times the twin's."""
        twin = layer.update(Need.UNALIGNED)
        return layer.delta if twin is None else layer.delta.plus(twin.times(-self.gamma))
