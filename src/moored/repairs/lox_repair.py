# SPDX-License-Identifier: Apache-2.0
"""LoX as a repair: extrapolate the first directions of the alignment, after tuning instead of before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from moored.errors import require
from moored.method import MethodInfo, Need
from moored.ops.truncation import leading
from moored.repairs.base import Delta, Form, Layer, LayerScore, Repair, every


@dataclass(frozen=True, kw_only=True)
class LoXRepair(Repair):
    """Add the best rank-k part of V = W_aligned - W_base once more to what was tuned.

    Paper:
        Perin et al.: LoX: Low-Rank Extrapolation Robustifies LLM Safety Against Fine-tuning, COLM 2025,
        arXiv 2506.15606. There it is done before tuning, which is the defence `LoX`.

    Algorithm:
        W <- W_f + alpha U_k S_k Q_k^T, with V = U S Q^T           (`ops.truncation.leading`)

        An adapter gets k more ranks: B <- [s B, alpha U_k S_k], A <- [A; Q_k^T].

    Args:
        k: directions, >= 1. The paper's: 6, from secondary sources.
        alpha: how often V_k is added, >= 0; 0 changes nothing. The paper's: 1.25, likewise.

    Needs:
        `aligned` and `base`.

    Cost:
        One read of both models, and k directions of every V: exact up to a side of 1024, beyond by a seeded range
        finder with eight power iterations.

    Differs from paper:
        Applied after tuning. Only linear layers; of an adapter, only the modules that it adapts.

    Raises:
        ConfigError: a parameter is out of range.

    Example:
        >>> repair("adapter", LoXRepair(), aligned="chat", base="base", out="repaired")  # doctest: +SKIP
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="lox_repair",
        title="LoX: Low-Rank Extrapolation Robustifies LLM Safety Against Fine-tuning",
        authors="Perin et al.",
        arxiv="2506.15606",
        venue="COLM",
        year=2025,
        stage="post-fine-tuning",
        needs=frozenset({Need.ALIGNED, Need.BASE}),
        fidelity="variant",
        differs="after tuning instead of before",
        null={"alpha": 0.0},
        cost="reads both models once, k directions of each; k more ranks",
    )
    strengths: ClassVar[Mapping[str, Sequence[Any]]] = {"alpha": (0.5, 1.25)}

    k: int = 6
    alpha: float = 1.25

    def __post_init__(self) -> None:
        """Validate."""
        require(self.k >= 1, "LoXRepair", "k", "an integer >= 1", self.k)
        require(0 <= self.alpha < float("inf"), "LoXRepair", "alpha", ">= 0 and finite", self.alpha)

    @classmethod
    def paper(cls) -> LoXRepair:
        """Six directions, 1.25 times: what the paper does before tuning, from secondary sources."""
        return cls(k=6, alpha=1.25)

    @property
    def form(self) -> Form:
        """Ranks grow by k."""
        return "more"

    def score(self, layer: Layer) -> LayerScore:
        """Sizes."""
        return LayerScore.beside_safety(layer)

    def select(self, scores: Sequence[LayerScore]) -> set[str]:
        """Every layer."""
        return every(scores) if self.alpha else set()

    def edit(self, layer: Layer, score: LayerScore) -> Delta:
        """The update plus alpha V_k."""
        left, right = leading(layer.safety(), self.k)
        return layer.delta.plus(Delta(b=self.alpha * left, a=right).cpu())
