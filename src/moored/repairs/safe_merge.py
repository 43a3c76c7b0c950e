# SPDX-License-Identifier: Apache-2.0
"""SafeMERGE: mix a safe adapter into the modules that point away from the alignment."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from moored.errors import NeverSupported, require
from moored.method import MethodInfo, Need
from moored.repairs.base import Delta, Form, Layer, LayerScore, Repair, check_choice
from moored.repairs.safe_lora import SafeLoRA, of_angles, score_safety

if TYPE_CHECKING:
    from moored.repairs.report import LayerRow

HOW = ("cat", "linear")


@dataclass(frozen=True, kw_only=True)
class SafeMERGE(Repair):
    """Where Safe LoRA's gate finds an update unsafe, merge it with that of a safety-tuned adapter.

    Paper:
        Djuhera, Kadhe, Ahmed, Zawad, Boche: SafeMERGE: Preserving Safety Alignment in Fine-Tuned Large Language Models
        via Selective Layer-Wise Model Merging, 2025, arXiv 2503.17239.

    Algorithm:
        1. c per module as in Safe LoRA                                          (`safe_lora.score_safety`)
        2. if c < tau: delta <- (1 - weight) delta_f + weight delta_s            (`select`, `edit`)

    Args:
        tau: merge where c < tau, 0-1; 0 changes nothing. Authors' code: 0.35.
        k: merge exactly the k modules with the smallest c.
        fraction: merge that part of them, 0-1. At most one of the three; with none, `fraction` is that of `SafeLoRA`.
        weight: share of the safe update, 0-1; 0 changes nothing. Authors' code: 0.2.
        how: "cat": factors end to end, which is step 2 exactly; ranks add up. "linear": factors added up as PEFT's
            "linear" does, A = sum_i sqrt(w_i s_i) A_i and B alike. The rank stays, but the product has cross terms
            B_f A_s that belong to no model. Authors' code: "linear".

    Needs:
        `aligned`, `base`, and `safe`: an adapter on the aligned model (or, for a full model, a full model).

    Cost:
        As `SafeLoRA`, and one read of the safe update.

    Differs from paper:
        The default merges exactly. The gate is that of `SafeLoRA` here: names instead of positions, no rounding, and a
        module without a safety vector is left alone (the authors' code always merges it).

    Raises:
        ConfigError: a parameter is out of range.
        CheckpointError: the safe model was tuned on none of the modules.
        NeverSupported: "linear" without factors of equal rank.

    Example:
        >>> repair("adapter", SafeMERGE(), aligned="chat", base="base", safe="s", out="o")  # doctest: +SKIP
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="safe_merge",
        title="SafeMERGE: Preserving Safety Alignment in Fine-Tuned Large Language Models via Selective Layer-Wise "
        "Model Merging",
        authors="Djuhera et al.",
        arxiv="2503.17239",
        venue="arXiv",
        year=2025,
        stage="post-fine-tuning",
        needs=frozenset({Need.ALIGNED, Need.BASE, Need.SAFE}),
        fidelity="paper",
        differs='merges exactly unless `how="linear"`; the gate matches by name',
        null={"weight": 0.0},
        cost="as safe_lora, and one read of the safe update",
    )
    strengths: ClassVar[Mapping[str, Sequence[Any]]] = {"fraction": (0.5, 1.0)}

    tau: float | None = None
    k: int | None = None
    fraction: float | None = None
    weight: float = 0.2
    how: str = "cat"

    def __post_init__(self) -> None:
        """Validate."""
        check_choice("SafeMERGE", k=self.k, fraction=self.fraction, tau=self.tau)
        if self.tau is not None:
            require(0 <= self.tau <= 1, "SafeMERGE", "tau", "in 0-1, the range of the cosine", self.tau)
        require(0 <= self.weight <= 1, "SafeMERGE", "weight", "in 0-1", self.weight)
        require(self.how in HOW, "SafeMERGE", "how", f"one of {', '.join(HOW)}", self.how)

    @classmethod
    def paper(cls) -> SafeMERGE:
        """The authors' code: tau = 0.35, weight = 0.2, PEFT's linear merge."""
        return cls(tau=0.35, weight=0.2, how="linear")

    @property
    def form(self) -> Form:
        """Factors of both; PEFT's linear merge keeps the rank."""
        return "more" if self.how == "cat" else "same"

    def parameters(self) -> dict[str, Any]:
        """With the default fraction filled in."""
        return {**super().parameters(), "fraction": self._gate.parameters()["fraction"]}

    def score(self, layer: Layer) -> LayerScore:
        """Safe LoRA's."""
        return score_safety(layer)

    def select(self, scores: Sequence[LayerScore]) -> set[str]:
        """Safe LoRA's choice."""
        return self._gate.select(scores) if self.weight else set()

    def remarks(self, rows: Sequence[LayerRow]) -> Sequence[str]:
        """What the gate's cosines mean."""
        return of_angles(rows)

    def edit(self, layer: Layer, score: LayerScore) -> Delta:
        """Step 2."""
        safe = layer.update(Need.SAFE)
        if safe is None:
            return layer.delta.times(1 - self.weight)
        if self.how == "cat":
            return layer.delta.times(1 - self.weight).plus(safe.times(self.weight))
        return linear(layer.delta, safe, self.weight)

    @property
    def _gate(self) -> SafeLoRA:
        return SafeLoRA(tau=self.tau, k=self.k, fraction=self.fraction)


def linear(tuned: Delta, safe: Delta, weight: float) -> Delta:
    """PEFT's "linear" merge of two adapters: each factor is the sum of both, weighted by sqrt(w_i s_i).

    Args:
        tuned: weighted with 1 - weight.
        safe: of the same rank.
        weight: 0-1.

    Raises:
        NeverSupported: a dense update, or another rank.
    """
    if tuned.a is None or safe.a is None or tuned.rank != safe.rank:
        raise NeverSupported(f'SafeMERGE(how="linear") adds factors of one rank; got {tuned.rank} and {safe.rank}')
    own, other = math.sqrt((1 - weight) * tuned.scale), math.sqrt(weight * safe.scale)
    return Delta(b=own * tuned.b + other * safe.b, a=own * tuned.a + other * safe.a)
