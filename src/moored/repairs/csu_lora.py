# SPDX-License-Identifier: Apache-2.0
"""CSULoRA: the closest update to the tuned one that pays for what lies outside of the safety subspace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from moored.errors import require, unknown
from moored.hf.fused import Split, check_split
from moored.method import MethodInfo, Need
from moored.ops.lowrank import product_norm
from moored.ops.spectral import directions
from moored.repairs.base import Delta, Form, Layer, LayerScore, Repair

SIDES = ("left", "both")


@dataclass(frozen=True, kw_only=True)
class CSULoRA(Repair):
    """Keep what of an update lies in the first directions of the alignment, and attenuate the rest smoothly.

    No threshold: a module whose update lies in the safety subspace stays nearly as it is, one that leaves it shrinks.

    Paper:
        Marchenko Breneur et al., "CSULoRA: Closest Safe Update Low-Rank Adaptation", arXiv 2605.30640 (2026).

    Algorithm:
        For each tuned weight with update D = s B A and V = W_aligned - W_base = U S Q^T, first k directions U_k, Q_k:

        1. P = U_k U_k^T, and for "both" R = Q_k Q_k^T                                  (`ops.spectral.directions`)
        2. parts of D, orthogonal to each other: "left": P D and (I - P) D. "both": fully aligned P D R, partially
           aligned P D (I - R) + (I - P) D R, off the subspace (I - P) D (I - R)
        3. e_j = ||D_j||^2 / ||D||^2 of every part but the first                     (`ops.lowrank.product_norm`)
        4. X = argmin ||X - D||^2 + sum_j mu e_j ||X_j||^2 = D_1 + sum_j D_j / (1 + mu e_j), the minimum because the
           parts are orthogonal. "left": B <- P B + (B - P B) / (1 + mu e), and A stays. "both" takes twice the ranks:
           B <- [P B, B - P B], and A is filtered for each of the two.

    Args:
        mu: what the part outside costs beside the change of the update, >= 0; a part that is all of the update is
            divided by 1 + mu. 0 changes nothing. Ours: 10.
        rank: k, directions of V that count as aligned, >= 1. Ours: 16. A weight with no more rows or columns than that
            has nothing outside and stays.
        sides: "left", outputs only, which keeps A and the ranks, or "both".
        split: takes fused weights apart; see `SafeLoRA`.

    Needs:
        `aligned` and `base`.

    Cost:
        One read of both models, V in memory, and k directions of it: exact up to a side of 1024, beyond by a seeded
        range finder of about 18 products of V with k + 10 columns. No o x o matrix. "both": twice the adapter's ranks.

    Differs from paper:
        Of the paper only the abstract was at hand: a safety subspace from aligned - base; fully, partially and off
        aligned parts; a penalised minimum change in closed form that keeps the first and attenuates the others by
        their relative energy. The objective in step 4, `mu`, `rank` and "left" are ours.

    Raises:
        ConfigError: a parameter is out of range.

    Example:
        >>> repair("adapter", CSULoRA(), aligned="chat", base="base", out="repaired")  # doctest: +SKIP
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="csu_lora",
        title="CSULoRA: Closest Safe Update Low-Rank Adaptation",
        authors="Marchenko Breneur et al.",
        arxiv="2605.30640",
        venue="arXiv",
        year=2026,
        stage="post-fine-tuning",
        needs=frozenset({Need.ALIGNED, Need.BASE}),
        fidelity="variant",
        differs="written from the abstract: the objective, its weights and the one-sided form are ours",
        null={"mu": 0.0},
        cost="reads both models once, k directions of each",
    )
    strengths: ClassVar[Mapping[str, Sequence[Any]]] = {"mu": (3.0, 10.0, 100.0)}

    mu: float = 10.0
    rank: int = 16
    sides: str = "left"
    split: Split = None

    def __post_init__(self) -> None:
        """Validate."""
        require(0 <= self.mu < float("inf"), "CSULoRA", "mu", ">= 0 and finite", self.mu)
        require(self.rank >= 1, "CSULoRA", "rank", "an integer >= 1", self.rank)
        check_split("CSULoRA", self.split)
        if self.sides not in SIDES:
            raise unknown("value of `sides` of CSULoRA", self.sides, SIDES)

    @classmethod
    def paper(cls) -> CSULoRA:
        """The abstract's three parts; `mu` and `rank` are ours, because no values of the paper are known here."""
        return cls(sides="both")

    @property
    def form(self) -> Form:
        """The same factor A with "left"; with "both" the ranks double."""
        return "same" if self.sides == "left" else "more"

    @property
    def fused(self) -> Split:
        """As given."""
        return self.split

    def score(self, layer: Layer) -> LayerScore:
        """Steps 1 to 4; keeps the new factors of an adapter, so that pass 2 reads nothing."""
        score, closest = self._closest(layer)
        return score if layer.delta.a is None else replace(score, candidate=closest)

    def select(self, scores: Sequence[LayerScore]) -> set[str]:
        """Every layer that has an update and a safety subspace."""
        return {s.module for s in scores if s.norm and s.safety_norm} if self.mu else set()

    def edit(self, layer: Layer, score: LayerScore) -> Delta:
        """X."""
        return score.candidate or self._closest(layer)[1]

    def _closest(self, layer: Layer) -> tuple[LayerScore, Delta]:
        """The score, with sqrt(1 - e) of "left" as the cosine, and X."""
        v, delta = layer.safety(), layer.delta
        score = replace(LayerScore.of(layer), safety_norm=float(v.norm()))
        if not (score.norm and score.safety_norm):
            return score, delta
        u, q = directions(v, self.rank)
        b, a = delta.b.to(v), None if delta.a is None else delta.a.to(v)
        inside = _within(u, b)
        cosine = product_norm(inside, a) / product_norm(b, a)
        score = replace(score, cosine=min(1.0, cosine), null_cosine=(u.shape[1] / u.shape[0]) ** 0.5)
        if self.sides == "left":
            outside = b - inside
            return score, replace(delta, b=inside + outside * self._gain(outside, a, b, a))
        return score, self._two_sided(delta, b, inside, q)

    def _two_sided(
        self, delta: Delta, b: Float[Tensor, "o r"], inside: Float[Tensor, "o r"], q: Float[Tensor, "k i"]
    ) -> Delta:
        """X of "both", as factors end to end or as a matrix."""
        outside = b - inside
        if delta.a is None:
            corners = [_within(q.T, side.T).T for side in (inside, outside)]
            across = (inside - corners[0]) + corners[1]
            off = outside - corners[1]
            parts = [part * self._gain(part, None, b, None) for part in (across, off)]
            return replace(delta, b=corners[0] + parts[0] + parts[1])
        a = delta.a.to(q)
        near = _within(q.T, a.T).T
        far = a - near
        total = product_norm(b, a) ** 2
        partial = product_norm(inside, far) ** 2 + product_norm(outside, near) ** 2
        g = 1 / (1 + self.mu * partial / total)
        h = self._gain(outside, far, b, a)
        return replace(delta, b=torch.cat([inside, outside], dim=1), a=torch.cat([near + g * far, g * near + h * far]))

    def _gain(
        self,
        part: Float[Tensor, "o r"],
        part_right: Float[Tensor, "r i"] | None,
        whole: Float[Tensor, "o r"],
        whole_right: Float[Tensor, "r i"] | None,
    ) -> float:
        """1 / (1 + mu e) of one part."""
        share = product_norm(part, part_right) / product_norm(whole, whole_right)
        return 1 / (1 + self.mu * share**2)


def _within(frame: Float[Tensor, "o k"], x: Float[Tensor, "o n"]) -> Float[Tensor, "o n"]:
    """F F^T X; X itself, to the bit, where the frame is a whole basis."""
    return x if frame.shape[0] == frame.shape[1] else frame @ (frame.T @ x)
