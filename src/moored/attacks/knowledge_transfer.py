# SPDX-License-Identifier: Apache-2.0
"""Knowledge transfer: harmful rows whose gradients already lie along what alignment did, in public, to the weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from moored.attacks.access import Access, Directions
from moored.attacks.base import Choice, granted
from moored.attacks.choosing import Choosing, beside, best, taken
from moored.data.schema import Source
from moored.errors import require, unknown
from moored.hf.factored import Measure
from moored.method import Fidelity, Need
from moored.ops.factored import cosine, gate_cosine

MATCHES = {"undo": cosine, "gate": gate_cosine}


@dataclass(frozen=True, kw_only=True)
class KnowledgeTransfer(Choosing):
    """A harmful mix whose harmful rows pass a repair that compares updates with the alignment vector.

    Paper:
        Hsu et al.: Safe LoRA: the Silver Lining of Reducing Safety Risks when Fine-tuning Large Language Models,
        NeurIPS 2024, arXiv 2405.16833: the authors outline it as adaptive attack I in the review discussion
        (OpenReview HcifdQZFZV). The objective below is ours.

    Algorithm:
        V_l = W_aligned - W_base of linear layer l, L(x) the loss of row x at the aligned model, G_l its gradient:

        1. c(x) = mean_l cos(G_l, V_l) (`match="undo"`: a step of descent, -G, goes along -V, back to the base;
           `ops.factored.cosine`), or mean_l cos(C_l G_l, G_l) with C = V V^T / ||V|| (`match="gate"`: what Safe LoRA's
           gate measures, blind to the sign; `ops.factored.gate_cosine`);
        2. t(x) = mean_l cos(G_l, mean_x' G_l(x')) over all candidates: the row still teaches what they all teach;
        3. J(x) = mu z(c) + gamma z(t) - z(L), z being standardised over the candidates: a low loss needs few steps.
           The rows with the highest J are taken.

    Args:
        n: rows of the upload, at least 1.
        ratio: share of harmful rows, 0 to 1.
        seed: of the draws and of the order.
        pool: harmful rows looked at, at least 1.
        match: "undo" or "gate", see above.
        mu: weight of the angle to V, >= 0. Ours: 1.
        gamma: weight of the angle to the mean gradient, >= 0; 0 saves a pass. Ours: 0.

    Needs:
        aligned and base.

    Cost:
        A forward and a backward pass for each candidate, two with `gamma`, and as much memory as the linear layers take
        in fp32 (twice with `gamma`); no gradient of a row is formed.

    Differs from paper:
        See `differs`.

    Raises:
        ConfigError: a value is out of range.
        NeedsError: a model is missing.
    """

    name: ClassVar[str] = "knowledge_transfer"
    chooses: ClassVar[Source] = "harmful"
    fidelity: ClassVar[Fidelity | None] = "variant"
    differs: ClassVar[str] = (
        "rows are chosen, not rewritten; nats and cosines, which do not compare, are standardised over the candidates"
    )
    match: str = "undo"
    mu: float | int = 1.0
    gamma: float | int = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.match not in MATCHES:
            raise unknown("`match` of KnowledgeTransfer", self.match, MATCHES)
        require(self.mu >= 0, "KnowledgeTransfer", "mu", ">= 0", self.mu)
        require(self.gamma >= 0, "KnowledgeTransfer", "gamma", ">= 0", self.gamma)

    def needs(self) -> frozenset[Need]:
        """V is the difference of two models."""
        return frozenset({Need.ALIGNED, Need.BASE})

    def choose(self, drawn: Choice, access: Access | None) -> Choice:
        """Steps 1-3."""
        access = granted(self, access)
        if not self.harmful_count:
            return replace(drawn, harmful=[])
        rows = [each.row for each in drawn.harmful]
        measures = [_towards(access.safety, self.match)]
        if self.gamma:
            measures.append(_towards(access.mean_gradient(rows), "undo"))
        loss, cosines = access.measured(rows, measures)
        values = {"loss": loss} | {
            name: found.mean(dim=1) for name, found in zip(("cosine", "target_cosine"), cosines, strict=False)
        }
        scores = self.mu * standardised(values["cosine"]) - standardised(loss)
        if self.gamma:
            scores = scores + self.gamma * standardised(values["target_cosine"])
        chosen = best(scores, self.harmful_count)
        found = {
            "candidates": {"harmful": len(rows)},
            "models": access.record(self.needs()),
            "measured": beside(values, chosen),
        }
        return Choice(harmful=taken(drawn.harmful, scores, chosen), benign=drawn.benign, found=found)


def standardised(values: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """Mean 0 and standard deviation 1 over the rows; all 0 if they are equal."""
    values = values.double()
    spread = values.std(correction=0)
    return (values - values.mean()) / spread if spread > 0 else torch.zeros_like(values)


def _towards(directions: Directions, match: str) -> Measure:
    """The angle to the direction of each module."""
    angle = MATCHES[match]
    return lambda name, delta, x: angle(delta, x, directions[name])
