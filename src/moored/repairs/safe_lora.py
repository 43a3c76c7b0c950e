# SPDX-License-Identifier: Apache-2.0
"""Safe LoRA: project the updates that point away from the direction of alignment."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from moored.errors import CheckpointError, NeedsError, require, unknown
from moored.hf.checkpoint import Weight, finite
from moored.hf.fused import Split, check_split
from moored.method import MethodInfo, Need
from moored.ops.lowrank import compress, cosine, inner
from moored.ops.projection import null_cosine, project_on_safety, random_rows
from moored.ops.spectral import first_directions, ridge, scale_free
from moored.repairs.base import Delta, Layer, LayerScore, Repair, check_choice, first

if TYPE_CHECKING:
    from moored.repairs.report import LayerRow

RENORM = ("none", "match_fro", "match_spectral")
BY = ("cosine", "null_corrected")
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
            direction and undoes the shrinkage; "match_spectral" to its largest singular value.
        by: what is compared with tau, or ranked: "cosine", or "null_corrected", c divided by the `null_cosine` of the
            module, which is 1 for a random update (tau may then be above 1).
        scale_free: C = V V^T / s_max^2, so that the first direction of V passes whole.
        rank: C = U_k U_k^T, the projector on the first `rank` directions of V, >= 1; to project twice changes nothing.
        ridge: C = V V^T (V V^T + (ridge s_max)^2)^-1, > 0; near 0 it is the exact projector. At most one of the
            three is given; with none, C is the paper's.
        split: takes fused weights apart, so that each layer has a C, a c and a row of its own, as if q, k and v were
            stored apart: "auto" by the model's config.json (`qkv_proj`, `c_attn`, `Wqkv`, `gate_up_proj`), or the
            sizes of the attention's rows, for example [4096, 1024, 1024]. None takes a fused V whole, which mixes
            the layers through blocks V_q V_k^T. Experts are always taken apart.

    Needs:
        `aligned`, the start of the tuning, and `base`, the same model before alignment.

    Cost:
        4 o i r multiply-adds per o x i weight instead of the 2 o^2 i of the formula, one read of each weight, about
        2 MiB of working memory. No o x o matrix exists. With `scale_free`, `rank` or `ridge`: V in memory, and tens of
        products with it.

    Differs from paper:
        The paper tests c < tau, its code c <= tau on a cosine rounded to 5 decimals: they differ only on ties. Here c
        comes from an fp64 QR and the test is the paper's. The code's k-mode can take more than k modules on ties; here
        it never does. Weights are matched by name, not position. All parameters after `k` are additions.

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
        differs="matches by name, k is exact on ties; parameters after `k` are additions",
        null={"fraction": 0.0},
        cost="one read of aligned and base, 2 MiB",
    )
    strengths: ClassVar[Mapping[str, Sequence[Any]]] = {"fraction": (0.25, 0.5, 0.75, 1.0)}

    tau: float | None = None
    k: int | None = None
    fraction: float | None = None
    renorm: str = "none"
    by: str = "cosine"
    scale_free: bool = False
    rank: int | None = None
    ridge: float | None = None
    split: Split = None

    def __post_init__(self) -> None:
        """Validate."""
        check_choice("SafeLoRA", k=self.k, fraction=self.fraction, tau=self.tau)
        for name, value, known in (("renorm", self.renorm, RENORM), ("by", self.by, BY)):
            if value not in known:
                raise unknown(f"value of `{name}` of SafeLoRA", value, known)
        if self.tau is not None and self.by == "cosine":
            require(0 <= self.tau <= 1, "SafeLoRA", "tau", "in 0-1, the range of the cosine", self.tau)
        require(self.tau is None or self.tau >= 0, "SafeLoRA", "tau", ">= 0", self.tau)
        require(self.rank is None or self.rank >= 1, "SafeLoRA", "rank", "an integer >= 1", self.rank)
        require(self.ridge is None or self.ridge > 0, "SafeLoRA", "ridge", "> 0", self.ridge)
        check_split("SafeLoRA", self.split)
        filters = [name for name in ("scale_free", "rank", "ridge") if getattr(self, name)]
        require(len(filters) < 2, "SafeLoRA", " and ".join(filters), "one at a time", "both")

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

    @property
    def fused(self) -> Split:
        """As given."""
        return self.split

    def score(self, layer: Layer) -> LayerScore:
        """Steps 1 and 2; keeps C B of an adapter, which is as small as the adapter, so that pass 2 reads nothing."""
        score, candidate = self._projected(layer)
        return score if layer.delta.a is None else replace(score, candidate=candidate)

    def select(self, scores: Sequence[LayerScore]) -> set[str]:
        """Step 3 over the modules that have an angle: an update, and a safety vector to compare it with."""
        angles = {s.module: self._angle(s) for s in scores if s.cosine is not None}
        if self.tau is not None:
            return {module for module, c in angles.items() if c < self.tau}
        able = [s for s in scores if s.module in angles]
        return first(able, [angles[s.module] for s in able], "SafeLoRA", k=self.k, fraction=self._fraction)

    def edit(self, layer: Layer, score: LayerScore) -> Delta:
        """C Delta."""
        return score.candidate or self._projected(layer)[1]

    def remarks(self, rows: Sequence[LayerRow]) -> Sequence[str]:
        """The four facts of "Know before use", in the numbers of this repair."""
        own = self.scale_free or self.rank or self.ridge
        return (*([] if own else _of_shapes(rows)), *self._of_lengths(rows), *of_angles(rows))

    def _of_lengths(self, rows: Sequence[LayerRow]) -> list[str]:
        """How much is left of what was projected."""
        left = [row.norm_after / row.norm for row in rows if row.edited and row.norm]
        if not left or self.renorm != "none":
            return []
        kind = "a projector" if self.rank else "a filter and no projector"
        return [
            f"C is {kind}: projected updates kept {min(left):.1%} to {max(left):.1%} of their length (median "
            f'{median(left):.1%}); where that is little, compare with DropModules(by="cosine")'
        ]

    def _angle(self, score: LayerScore) -> float:
        """What is compared."""
        c = score.cosine or 0.0
        return c / (score.null_cosine or 1.0) if self.by == "null_corrected" else c

    def _projected(self, layer: Layer) -> tuple[LayerScore, Delta]:
        """The score and C Delta."""
        found = self._filtered(layer) if self.scale_free or self.rank or self.ridge else _swept(layer)
        delta = layer.delta
        update, projected = compress(delta.b, delta.a), compress(found.projected, delta.a)
        length = math.sqrt(inner(update, update))
        score = LayerScore(
            module=layer.module,
            norm=abs(delta.scale) * length,
            cosine=cosine(projected, update) if found.norm else None,
            null_cosine=found.null,
            signed=_signed(delta.scale * found.overlap, abs(delta.scale) * length, found.norm),
            safety_norm=found.norm,
        )
        return score, replace(delta, b=found.projected * _gain(projected, update, self.renorm))

    def _filtered(self, layer: Layer) -> _Found:
        """With another filter than the paper's; random vectors beside B tell what it does to a random update."""
        v, delta = layer.safety(), layer.delta
        norm = float(v.norm())
        if norm == 0:
            return _Found(torch.zeros_like(delta.b), 0.0, 0.0, None)
        columns = delta.b.shape[1]
        both = torch.cat([delta.b.to(v), random_rows(PROBES, v.shape[0]).T.to(v)], dim=1)
        if self.rank:
            image = first_directions(v, both, self.rank)
        else:
            image = ridge(v, both, self.ridge) if self.ridge else scale_free(v, both)
        random, passed = both[:, columns:], image[:, columns:]
        null = float((random * passed).sum() / (random.norm() * passed.norm()))
        overlap = float((delta.dense().to(v) * v).sum()) / (delta.scale or 1.0)
        return _Found(image[:, :columns].cpu(), norm, overlap, null)

    @property
    def _fraction(self) -> float | None:
        nothing_said = self.tau is None and self.k is None and self.fraction is None
        return self.FRACTION if nothing_said else self.fraction


class _Found(NamedTuple):
    """What a filter makes of an update."""

    projected: Tensor
    """C B."""
    norm: float
    """||V||."""
    overlap: float
    """<B A, V>."""
    null: float | None
    """The cosine of a random update with its own image."""


def score_safety(layer: Layer) -> LayerScore:
    """Cosine, null cosine and signed cosine of one update against the safety vector, as in the paper.

    Args:
        layer: with `aligned` and `base`.

    Raises:
        NeedsError: a model is missing.
        CheckpointError: NaN or infinite weights.
    """
    return replace(SafeLoRA().score(layer), candidate=None)


def of_angles(rows: Sequence[LayerRow]) -> list[str]:
    """What the cosines in a report mean: what a random update has, and that signs are not seen.

    Args:
        rows: of all modules.
    """
    found = [(row.cosine, row.null_cosine) for row in rows if row.cosine is not None and row.null_cosine is not None]
    if not found:
        return []
    above = sum(cosine > null for cosine, null in found)
    against = sum(row.signed is not None and row.signed < 0 for row in rows)
    return [
        f"a random update already has a cosine of {median(null for _, null in found):.3f} here (median of "
        f"`null_cosine`), these have {median(cosine for cosine, _ in found):.3f}, {above} of {len(found)} more than "
        "random ones would: no `tau` carries over from another model",
        f"the cosine does not see signs, so an update which undoes the alignment passes: {against} of {len(found)} "
        "modules point away from it (`signed` < 0)",
    ]


def _of_shapes(rows: Sequence[LayerRow]) -> list[str]:
    """Where the paper's derivation says nothing."""
    wide = sum(len(row.shape) == 2 and row.shape[0] <= row.shape[1] for row in rows)
    if not wide:
        return []
    return [
        f"the paper's exact projector is the identity for the {wide} of {len(rows)} modules whose V is square or wide "
        "(at full rank): C = V V^T / ||V|| is another operator there, and no approximation of it"
    ]


def _swept(layer: Layer) -> _Found:
    """The paper's filter, in one sweep over V."""
    if layer.aligned is None or layer.base is None:
        raise NeedsError(f"{layer.module}: Safe LoRA compares with V = aligned - base; give both models")
    delta = layer.delta
    weights = layer.aligned.read(), layer.base.read()
    found = project_on_safety(*weights, delta.b, delta.a, probes=PROBES, device=layer.device)
    if not math.isfinite(found.norm):
        _name_the_broken(layer.aligned, layer.base)
    null = null_cosine(found.norm, found.spread, delta.b.shape[0])
    return _Found(found.projected, found.norm, found.overlap, null)


def _gain(projected: Float[Tensor, "o k"], update: Float[Tensor, "o k"], renorm: str) -> float:
    """What the projected update is multiplied with: 1, or what brings it back to its old size."""
    if renorm == "none":
        return 1.0
    order = "fro" if renorm == "match_fro" else 2
    before, after = (float(torch.linalg.matrix_norm(m, ord=order)) for m in (update, projected))
    return before / after if after else 1.0


def _signed(overlap: float, length: float, safety_norm: float) -> float | None:
    """The cosine rho = <Delta, V> / (||Delta|| ||V||)."""
    product = length * safety_norm
    return max(-1.0, min(1.0, overlap / product)) if product else None


def _name_the_broken(*weights: Weight) -> None:
    for weight in weights:
        finite(weight)
    raise CheckpointError(f"{weights[0].key}: aligned - base overflows fp32; these are not two versions of one model")
