# SPDX-License-Identifier: Apache-2.0
"""Safe LoRA: project the updates that point away from the direction of alignment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from moored.errors import CheckpointError, NeedsError, require, unknown
from moored.hf.checkpoint import Weight, finite
from moored.method import MethodInfo, Need
from moored.ops.lowrank import compress, cosine, inner
from moored.ops.projection import null_cosine, project_on_safety
from moored.repairs.base import Delta, Layer, LayerScore, Repair, check_choice, first

PROBES = 8
"""Random vectors behind the null cosine: its standard error is at most 25 %, and a few per cent for most weights."""


@dataclass(frozen=True, kw_only=True)
class SafeLoRA(Repair):
    """Project the updates that point away from the alignment onto it, and leave the others alone.

    Needs no training and no data: only the weights before and after alignment, and the tuned update.

    Paper:
        Hsu et al., "Safe LoRA: the Silver Lining of Reducing Safety Risks when Fine-tuning Large Language Models",
        arXiv 2405.16833 (NeurIPS 2024).

    Algorithm:
        For each tuned weight with update Delta = s B A and safety vector V = W_aligned - W_base:

        1. C = V V^T / ||V||, applied as C B in one sweep over V         (`ops.projection.project_on_safety`)
        2. c = <C Delta, Delta> / (||C Delta|| ||Delta||), in 0-1         (`ops.lowrank.compress`, `cosine`)
        3. if c < tau, or c is among the smallest: Delta <- C Delta, that is B <- C B; A stays   (`select`, `edit`)

    Args:
        tau: project where c < tau, 0-1. 0 changes nothing.
        k: project exactly the k modules with the smallest c; ties go by name.
        fraction: project that part of the modules with an angle, smallest c first, 0-1. At most one of the three is
            given; with none, `fraction` is `FRACTION`, which unlike a tau means the same for every model.
        renorm: "none" as in the paper; "match_fro" scales C Delta back to the length of Delta, which keeps the
            direction and undoes the shrinkage.

    Needs:
        `aligned`, the start of the tuning, and `base`, the same model before alignment.

    Cost:
        4 o i r multiply-adds per o x i weight instead of the 2 o^2 i of the formula, one read of each weight, about
        4 MiB of working memory. No o x o matrix exists.

    Differs from paper:
        The paper tests c < tau, its code c <= tau on a cosine rounded to 5 decimals: they differ only on ties. Here c
        comes from an fp64 QR and the test is the paper's. The code's k-mode can take more than k modules on ties; here
        it never does. Weights are matched by name, not position. `fraction` and `renorm` are additions.

    Know before use:
        - The paper's exact projector V (V^T V)^-1 V^T is the identity for every square or wide V of full rank; C is
          no approximation of it but another operator.
        - C is a filter with eigenvalues sigma^2 / ||V||, not a projector. It mostly shrinks, often to a hundredth:
          compare with `DropModules(by="cosine")`.
        - A random update already has c near tr(V V^T) / (sqrt(o) ||V V^T||), reported as `null_cosine`; so one tau
          does not carry over from model to model.
        - C does not see signs: the update -V, which undoes the alignment, has a high c and passes. `signed` in the
          report is the cosine with V itself; below 0 means "away from the alignment".

    Raises:
        ConfigError: more than one of `tau`, `k`, `fraction`, or a value out of range.
        NeedsError: `aligned` or `base` is missing.
        CheckpointError: NaN or infinite weights.

    Example:
        >>> repair("adapter", SafeLoRA(), aligned="chat", base="base", out="repaired")  # doctest: +SKIP
    """

    FRACTION: ClassVar[float] = 0.6
    """Part of the modules projected when nothing is said."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="safe_lora",
        title="Safe LoRA: the Silver Lining of Reducing Safety Risks when Fine-tuning Large Language Models",
        authors="Hsu et al.",
        arxiv="2405.16833",
        venue="NeurIPS",
        year=2024,
        stage="post-fine-tuning",
        needs=frozenset({Need.ALIGNED, Need.BASE}),
        fidelity="paper",
        differs="matches by name, k is exact on ties; `fraction` and `renorm` are additions",
        null={"fraction": 0.0},
        cost="one read of aligned and base, 4 MiB",
    )

    tau: float | None = None
    k: int | None = None
    fraction: float | None = None
    renorm: str = "none"

    def __post_init__(self) -> None:
        """Validate."""
        check_choice("SafeLoRA", k=self.k, fraction=self.fraction, tau=self.tau)
        if self.tau is not None:
            require(0 <= self.tau <= 1, "SafeLoRA", "tau", "in 0-1, the range of the cosine", self.tau)
        if self.renorm not in ("none", "match_fro"):
            raise unknown("value of `renorm` of SafeLoRA", self.renorm, ("none", "match_fro"))

    @classmethod
    def paper(cls) -> SafeLoRA:
        """The paper's threshold, tau = 0.35.

        Reproductions of its Llama-2-7B-Chat runs use it on the query and value projections at r = 8, where it projects
        about 7 of 64 modules. The authors' code ships k = 10 instead.
        """
        return cls(tau=0.35)

    def parameters(self) -> dict[str, Any]:
        """With the default fraction filled in."""
        return {**super().parameters(), "fraction": self._fraction}

    def score(self, layer: Layer) -> LayerScore:
        """Steps 1 and 2; keeps C B of an adapter, which is as small as the adapter, so that pass 2 reads nothing."""
        return score_safety(layer, renorm=self.renorm)

    def select(self, scores: Sequence[LayerScore]) -> set[str]:
        """Step 3 over the modules that have an angle: an update, and a safety vector to compare it with."""
        angles = {s.module: s.cosine for s in scores if s.cosine is not None}
        if self.tau is not None:
            return {module for module, c in angles.items() if c < self.tau}
        able = [s for s in scores if s.module in angles]
        return first(able, [angles[s.module] for s in able], "SafeLoRA", k=self.k, fraction=self._fraction)

    def edit(self, layer: Layer, score: LayerScore) -> Delta:
        """C Delta."""
        return score.candidate or _projected(layer, self.renorm)[1]

    @property
    def _fraction(self) -> float | None:
        nothing_said = self.tau is None and self.k is None and self.fraction is None
        return self.FRACTION if nothing_said else self.fraction


def score_safety(layer: Layer, *, renorm: str = "none") -> LayerScore:
    """Cosine, null cosine and signed cosine of one update against the safety vector.

    Args:
        layer: with `aligned` and `base`.
        renorm: see `SafeLoRA`; only the candidate depends on it.

    Raises:
        NeedsError: a model is missing.
        CheckpointError: NaN or infinite weights.
    """
    score, candidate = _projected(layer, renorm)
    return score if layer.delta.a is None else replace(score, candidate=candidate)


def _projected(layer: Layer, renorm: str) -> tuple[LayerScore, Delta]:
    if layer.aligned is None or layer.base is None:
        raise NeedsError(f"{layer.module}: Safe LoRA compares with V = aligned - base; give both models")
    delta = layer.delta
    found = project_on_safety(layer.aligned.read(), layer.base.read(), delta.b, delta.a, probes=PROBES)
    if not math.isfinite(found.norm):
        _name_the_broken(layer.aligned, layer.base)
    update, projected = compress(delta.b, delta.a), compress(found.projected, delta.a)
    length = math.sqrt(inner(update, update))
    score = LayerScore(
        module=layer.module,
        norm=abs(delta.scale) * length,
        cosine=cosine(projected, update) if found.norm else None,
        null_cosine=null_cosine(found.norm, found.spread, delta.b.shape[0]),
        signed=_signed(delta.scale * found.overlap, abs(delta.scale) * length, found.norm),
        safety_norm=found.norm,
    )
    return score, replace(delta, b=found.projected * _gain(projected, length, renorm))


def _gain(projected: Float[Tensor, "o k"], length: float, renorm: str) -> float:
    """What the projected update is multiplied with: 1, or what brings it back to its old length."""
    shrunk = math.sqrt(inner(projected, projected))
    return length / shrunk if renorm == "match_fro" and shrunk else 1.0


def _signed(overlap: float, length: float, safety_norm: float) -> float | None:
    """The cosine rho = <Delta, V> / (||Delta|| ||V||)."""
    product = length * safety_norm
    return max(-1.0, min(1.0, overlap / product)) if product else None


def _name_the_broken(*weights: Weight) -> None:
    for weight in weights:
        finite(weight)
    raise CheckpointError(f"{weights[0].key}: aligned - base overflows fp32; these are not two versions of one model")
