# SPDX-License-Identifier: Apache-2.0
"""NLSR: transplant the safety-critical entries of a safe adapter into the modules that have moved away from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from moored.errors import NeverSupported, NotYetSupported, require
from moored.hf.statistics import moments, through
from moored.method import MethodInfo, Need
from moored.ops.lowrank import cosine, product_cosine
from moored.repairs.base import Delta, Form, Layer, LayerScore, Repair, check_choice, first
from moored.repairs.lab import Lab

SPACES = ("update", "factors")


@dataclass(frozen=True, kw_only=True)
class NLSR(Repair):
    """Find the entries of a safe adapter that make its safe answers, and put them where the update differs most.

    Paper:
        Yi, Zheng, Wang, de Melo, Wang, He: NLSR: Neuron-Level Safety Realignment of Large Language Models Against
        Harmful Fine-Tuning, AAAI 2025, arXiv 2412.12497.

    Algorithm:
        For each module, with the update delta = s B A and that of the safe adapter, delta_e = s_e B_e A_e:

        1. delta_e <- extrapolation delta_e, a safer reference than the adapter itself
        2. C = sum (A_e x)(A_e x)^T over the inputs x at all tokens of the safe answers      (`NLSR.prepare`, one pass)
        3. T' = P T, P the projector on the first floor(rho r) principal directions of the outputs T x; T is the matrix
           delta_e                                                                       (`directions`)
        4. M = entries where |T'| is above its (1 - share) quantile, the safety-critical ones     (`critical`)
        5. c = cos(M delta, M delta_e); in the `fraction` of the modules with the smallest c:
           delta <- delta_e where M, else delta                                          (`select`, `edit`)

        With `space="factors"`, T is each of A_e (whose outputs are A_e x) and B_e (with A_e x as its input) by itself,
        with a mask of its own; entries of A and B are overwritten, and c compares the products of the masked factors.

    Args:
        extrapolation: what the safe update is multiplied with, > 0; 1 takes it as it is. Authors' code: 3.24, both
            factors times 1.8, for an adapter of one mild epoch of DPO.
        rho: share of the ranks that stay in T', above 0 to 1; 1 leaves T as it is. Authors' code: 0.8.
        share: of the entries of T that are safety-critical, 0-1; 0 changes nothing. Authors' code: 0.2.
        fraction: part of the modules that is repaired, the least similar, 0-1; 0 changes nothing. Authors' code: 0.5.
        k: repair exactly k modules instead, or
        tau: all with c < tau, -1 to 1. At most one of the three is given; with none, `fraction` is `FRACTION`.
        epsilon: None: the choice above. Else, as the authors do, each module is drawn by itself with a probability that
            rises with its rank, from `fraction - epsilon` for the most similar to `fraction + epsilon` for the least.
            0-1. Authors' code: 0.2.
        seed: of that draw.
        space: "update": entries of the update, a matrix, which an adapter cannot hold. "factors": entries of A and B.

    Needs:
        `aligned`; `safe`, an adapter that was tuned on it for safety; `alignment`: harmful prompts with safe answers
        (authors: 2000 answers of the model itself).

    Cost:
        One pass of the aligned model over the rows; r x r numbers per module. In space "update", three matrices o x i
        at a time, twice.

    Differs from paper:
        The default works on the update. A product B A is the same for the factors B G^-1 and G A, and adapters that
        were trained apart have unrelated G: to mix entries of their factors means nothing, and the result is another
        for each G. The entries of the update have no G, and ranks may differ. "factors" is the authors' way; both
        adapters must have started from the same factors. By default the safe update is not extrapolated, as it may be
        stronger than the authors', and the choice of modules is not random. Scores come from C instead of stored
        activations, which is the same, in the aligned model without the safe adapter. A module without an update has
        nothing to be repaired; one that the safe adapter lacks stays.

    Know before use:
        The report has c as `signed`.

    Raises:
        ConfigError: a parameter is out of range.
        NeedsError: rows or a model are missing.
        NeverSupported: "factors" of what has none, or of another rank; "update" for an adapter without merging.
        NotYetSupported: `safe` is a full model.

    Example:
        >>> repair("adapter", NLSR(), aligned="chat", safe="s", alignment="rows.jsonl", merge=True,
        ...        out="repaired")  # doctest: +SKIP
    """

    FRACTION: ClassVar[float] = 0.5
    """Part of the modules that is repaired when nothing is said."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="nlsr",
        title="NLSR: Neuron-Level Safety Realignment of Large Language Models Against Harmful Fine-Tuning",
        authors="Yi, Xin et al.",
        arxiv="2412.12497",
        venue="AAAI",
        year=2025,
        stage="post-fine-tuning",
        needs=frozenset({Need.ALIGNED, Need.SAFE, Need.ALIGNMENT}),
        fidelity="variant",
        differs='entries of the update instead of the factors, unless `space="factors"`; no extrapolation and no '
        "random draw of modules, unless `paper()`",
        null={"fraction": 0.0},
        cost="one pass of the aligned model over the safe rows; r x r numbers per module",
    )
    strengths: ClassVar[Mapping[str, Sequence[Any]]] = {"fraction": (0.5, 1.0)}

    extrapolation: float = 1.0
    rho: float = 0.8
    share: float = 0.2
    fraction: float | None = None
    k: int | None = None
    tau: float | None = None
    epsilon: float | None = None
    seed: int = 0
    space: str = "update"

    def __post_init__(self) -> None:
        """Validate."""
        check_choice("NLSR", k=self.k, fraction=self.fraction, tau=self.tau)
        require(0 < self.extrapolation < math.inf, "NLSR", "extrapolation", "> 0 and finite", self.extrapolation)
        require(0 < self.rho <= 1, "NLSR", "rho", "in 0-1, above 0", self.rho)
        require(0 <= self.share <= 1, "NLSR", "share", "in 0-1", self.share)
        if self.tau is not None:
            require(-1 <= self.tau <= 1, "NLSR", "tau", "in -1 to 1, the range of the cosine", self.tau)
        if self.epsilon is not None:
            require(0 <= self.epsilon <= 1, "NLSR", "epsilon", "in 0-1", self.epsilon)
            require(self.k is None and self.tau is None, "NLSR", "epsilon", "given with `fraction` alone", self.epsilon)
        require(self.space in SPACES, "NLSR", "space", f"one of {', '.join(SPACES)}", self.space)

    @classmethod
    def paper(cls) -> NLSR:
        """The authors' code: factors, both times 1.8, modules drawn with probabilities of 0.3-0.7 from seed 42."""
        return cls(extrapolation=3.24, rho=0.8, share=0.2, fraction=0.5, epsilon=0.2, seed=42, space="factors")

    @property
    def form(self) -> Form:
        """Entries of the update, or of the factors that it has."""
        return "dense" if self.space == "update" else "same"

    def parameters(self) -> dict[str, Any]:
        """With the default fraction filled in."""
        return {**super().parameters(), "fraction": self._fraction}

    def needs(self) -> frozenset[Need]:
        """Nothing has to be looked at to change nothing."""
        return frozenset() if self._idle else self.info.needs

    def prepare(self, lab: Lab) -> Mapping[str, Any]:
        """Step 2, and that the two updates fit each other."""
        safe = {}
        for module in lab.source.modules:
            layer = lab.source.layer(module)
            if (reference := layer.update(Need.SAFE)) is not None:
                safe[module] = self._checked(layer, reference)
        sums = {module: (module, partial(through, a, moments)) for module, a in safe.items()}
        return lab.sums(lab.aligned, Need.ALIGNMENT, sums, answers=True)

    def score(self, layer: Layer) -> LayerScore:
        """Steps 3 and 4, and c; None where there is nothing to compare."""
        score = LayerScore.of(layer)
        return replace(score, signed=self._similarity(layer)) if score.norm > 0 else score

    def select(self, scores: Sequence[LayerScore]) -> set[str]:
        """Step 5's choice, among the modules that can be compared."""
        if self._idle:
            return set()
        able = {s.module: s.signed for s in scores if s.signed is not None}
        if self.tau is not None:
            return {module for module, c in able.items() if c < self.tau}
        if self.epsilon is not None:
            return self._drawn(sorted(able, key=lambda module: (-able[module], module)), self.epsilon)
        among = [s for s in scores if s.module in able]
        return first(among, [able[s.module] for s in among], "NLSR", k=self.k, fraction=self._fraction)

    def edit(self, layer: Layer, score: LayerScore) -> Delta:
        """Step 5."""
        new = [torch.where(part.mask, part.safe, part.own) for part in self._parts(layer)]
        return Delta(b=new[0]) if self.space == "update" else replace(layer.delta, b=new[0], a=new[1])

    def _checked(self, layer: Layer, safe: Delta) -> Float[Tensor, "r i"]:
        """A of the safe adapter, once it is clear that the space fits."""
        if safe.a is None:
            raise NotYetSupported("`safe` is a full model; NLSR finds safety-critical entries in an adapter only")
        if self.space == "factors" and layer.delta.a is None:
            raise NeverSupported(f'{layer.module} has no factors to mix; take NLSR(space="update")')
        if self.space == "factors" and layer.delta.rank != safe.rank:
            raise NeverSupported(
                f"{layer.module} has rank {layer.delta.rank} and that of the safe adapter {safe.rank}: their factors "
                'have no entries in common; take NLSR(space="update")'
            )
        return safe.a

    def _parts(self, layer: Layer) -> list[Part]:
        """The update, or B and A; [] if no row reaches the module or the safe adapter does not have it."""
        safe = layer.update(Need.SAFE)
        if layer.found is None or safe is None or safe.a is None:
            return []
        c = layer.found.cpu()
        b, a = safe.b.double(), safe.a.double()
        count = max(1, int(self.rho * len(c)))
        u, v = directions(b, c, count), torch.linalg.eigh(c).eigenvectors[:, -count:]
        if self.space == "update":
            own, reference = layer.delta.dense().float(), self.extrapolation * safe.dense().float()
            filtered = (u @ (u.T @ b)).float() @ safe.a.float()
            return [Part(own, reference, critical(filtered, self.share))]
        factors = layer.delta
        if factors.a is None:
            return []
        gain = math.sqrt(self.extrapolation * safe.scale / factors.scale)  # the factors are multiplied with s, not s_e
        return [
            Part(factors.b, (gain * b).to(factors.b), critical(u @ (u.T @ b), self.share)),
            Part(factors.a, (gain * a).to(factors.a), critical(v @ (v.T @ a), self.share)),
        ]

    def _similarity(self, layer: Layer) -> float | None:
        """The cosine of what the masks leave of the update and of the reference."""
        parts = self._parts(layer)
        if not parts:
            return None
        own, safe = [p.own * p.mask for p in parts], [p.safe * p.mask for p in parts]
        return cosine(own[0], safe[0]) if len(parts) == 1 else product_cosine(own[0], own[1], safe[0], safe[1])

    def _drawn(self, modules: Sequence[str], epsilon: float) -> set[str]:
        """The authors' choice.

        Args:
            modules: the most similar first.
            epsilon: half the range of the probabilities.
        """
        middle = self._fraction or 0.0
        chances = torch.linspace(middle - epsilon, middle + epsilon, len(modules), dtype=torch.float64).clamp(0, 1)
        draws = torch.bernoulli(chances, generator=torch.Generator().manual_seed(self.seed)).tolist()
        return {module for module, drawn in zip(modules, draws, strict=True) if drawn}

    @property
    def _fraction(self) -> float | None:
        nothing_said = self.tau is None and self.k is None and self.fraction is None
        return self.FRACTION if nothing_said else self.fraction

    @property
    def _idle(self) -> bool:
        return self.share == 0 or self.k == 0 or (self.fraction == 0 and not self.epsilon)


class Part(NamedTuple):
    """A tensor of an update."""

    own: Tensor
    safe: Tensor
    """The reference's, on the scale of `own`."""
    mask: Tensor
    """Which entries are safety-critical."""


def directions(b: Float[Tensor, "o r"], c: Float[Tensor, "r r"], count: int) -> Float[Tensor, "o count"]:
    """The principal directions of B z over tokens, from C = sum z z^T: with B = Q R, Q times those of R z.

    Args:
        b: B.
        c: C.
        count: how many.
    """
    q, r = torch.linalg.qr(b)
    return q @ torch.linalg.eigh(r @ c @ r.T).eigenvectors[:, -count:]


def critical(filtered: Float[Tensor, "m n"], share: float) -> Bool[Tensor, "m n"]:
    """Entries whose magnitude is above the (1 - share) quantile of all.

    Args:
        filtered: T'.
        share: 0-1; 1 is every entry.
    """
    size = filtered.abs()
    if share == 1:
        return torch.ones_like(size, dtype=torch.bool)
    below = int((1 - share) * (size.numel() - 1))
    return size > size.flatten().kthvalue(below + 1).values
