# SPDX-License-Identifier: Apache-2.0
"""Safe Delta: keep the part of the update that safe answers hardly feel, and compensate for what is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from moored.errors import CheckpointError, require
from moored.hf.statistics import moments
from moored.method import MethodInfo, Need
from moored.repairs.base import Delta, Form, Layer, LayerScore, Repair
from moored.repairs.lab import Lab

SIDE = 4096
"""The width of Llama-2-7B, at which the authors chose `s`: a block's budget is s times its share of a square of it."""

CHUNK = 32
"""Steps whose effect on the columns behind them is added in one product: the same sums in another order."""


@dataclass(frozen=True, kw_only=True)
class SafeDelta(Repair):
    """Keep the entries of the update that change safe answers least, up to a budget; the others go back to `aligned`.

    Paper:
        Lu, Liu, Wu, Chen, Zhang, Ong, Wang, Tang: Safe Delta: Consistently Preserving Safety when Fine-Tuning LLMs on
        Diverse Datasets, ICML 2025, arXiv 2505.12038.

    Algorithm:
        For each module, with inputs x in the aligned model over all tokens of n safe rows:

        1. H = (2 / n) sum x x^T; channels that are never used get H_jj = 1; H <- H + damp mean(diag H) I
        2. R^T R = H^-1 with R upper triangular, d = diag R                          (`root_of_inverse`)

        With the change E = 0 at first, for each block of `block` columns, left to right:

        3. the cost of keeping entry ij is (delta_ij - E_ij)^2 / d_j^2; entries go by 1 / d_j^2 ascending (utility per
           cost, descending), the last `exclude` of them are not kept, and of the others the longest beginning whose
           costs add up to at most s (block / 4096) (o / 4096) mean(1 / d^2)               (`affordable`)
        4. for every `step` columns: e = (E - delta) / d where an entry is kept, else 0; E <- delta where it is kept;
           and all columns to the right get E <- E - e R                                     (`swept`)

        E is the new update. Step 4 is the OBS compensation of SparseGPT: the columns to the right take the values that
        minimise tr(E H E^T), the change of the outputs on the safe rows, given those to the left.

    Args:
        s: budget, >= 0; 0 gives the aligned model back. None: no budget. It is absolute, in squared weights, and knows
            nothing of how large the update is: for another model or training, look at `norm_after` in the report and
            try a few. Authors' code: 0.1; their README: 0.11; both for full fine-tuning of Llama-2-7B.
        exclude: share of a block's entries, the most sensitive, that is never kept, 0-1. With `s=None`, 0 keeps the
            whole update. Authors' code: 0.15.
        damp: > 0, relative to the mean of diag H. Authors' code: 0.01.
        block: columns that share a budget, >= 1. Authors: 2048. A last block with fewer columns has the whole budget.
        step: columns between compensations, >= 1. 1 is exact. Authors' code: 4, which leaves out what four columns do
            to each other: on SmolLM2 the safe outputs then move up to 1.7 times as much, mostly just as much.
        memory: GiB of curvature (H, i x i in fp64) that is held at a time, > 0; the less, the more passes over the
            rows. The result does not depend on it.

    Needs:
        `aligned`, and `alignment`: harmful prompts with safe answers (authors: 128, refusals of the model itself).

    Cost:
        The aligned model stays in memory, and passes over the rows: as many as all H take up `memory`. Modules with the
        same input (query, key and value; gate and up) share one; Llama-2-7B has 41 GiB of them, 11 passes. Beside
        `memory`, about four matrices i x i in fp64. 2 i^3 multiply-adds for each H and o i^2 for each module.

    Differs from paper:
        With `step=4`, steps 1 to 4 are exactly what the authors' code computes; its constants for Llama-2-7B (s / 2 per
        block of 2048 columns) are written as what they stand for. H is summed up and factored in fp64, by another route
        to the same R; costs add up in fp64; equal sensitivities, which their sort puts in any order, go column by
        column. Rows are rendered with the model's own chat template, theirs with four of Llama-2's. What no row reaches
        keeps its update.

    Know before use:
        What compensates lies in directions that the rows hardly use. With few rows there are many of them, and the new
        update can be longer than the old one (`norm_after` in the report): give hundreds of rows.

    Raises:
        ConfigError: a parameter is out of range.
        NeedsError: rows or the aligned model are missing.
        NeverSupported: an adapter without merging.
        CheckpointError: the aligned model gives NaN or infinite activations.

    Example:
        >>> repair("tuned", SafeDelta(), aligned="chat", alignment="rows.jsonl", out="repaired")  # doctest: +SKIP
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="safe_delta",
        title="Safe Delta: Consistently Preserving Safety when Fine-Tuning LLMs on Diverse Datasets",
        authors="Lu, Ning et al.",
        arxiv="2505.12038",
        venue="ICML",
        year=2025,
        stage="post-fine-tuning",
        needs=frozenset({Need.ALIGNED, Need.ALIGNMENT}),
        fidelity="paper",
        differs="compensates exactly unless `step=4`; rows in the model's own template; H in fp64; ties go by column",
        null={"s": None, "exclude": 0.0},
        cost="a few passes of the aligned model over the safe rows; a Cholesky factorisation per input of a layer",
    )
    strengths: ClassVar[Mapping[str, Sequence[Any]]] = {"s": (10.0, 1.0, 0.1)}

    s: float | None = 0.1
    exclude: float = 0.15
    damp: float = 0.01
    block: int = 2048
    step: int = 1
    memory: float = 4.0

    def __post_init__(self) -> None:
        """Validate."""
        require(self.s is None or 0 <= self.s < math.inf, "SafeDelta", "s", ">= 0 and finite, or None", self.s)
        require(0 <= self.exclude <= 1, "SafeDelta", "exclude", "in 0-1", self.exclude)
        require(0 < self.damp < math.inf, "SafeDelta", "damp", "> 0 and finite", self.damp)
        require(self.block >= 1, "SafeDelta", "block", "an integer >= 1", self.block)
        require(self.step >= 1, "SafeDelta", "step", "an integer >= 1", self.step)
        require(self.memory > 0, "SafeDelta", "memory", "> 0", self.memory)

    @classmethod
    def paper(cls) -> SafeDelta:
        """The authors' script: s = 0.1, the last 15 % excluded, damping 1 %, blocks of 2048 columns, steps of 4."""
        return cls(s=0.1, exclude=0.15, damp=0.01, block=2048, step=4)

    @property
    def form(self) -> Form:
        """Single entries."""
        return "dense"

    def needs(self) -> frozenset[Need]:
        """Nothing has to be run to keep everything."""
        return frozenset() if self._keeps_all else self.info.needs

    def prepare(self, lab: Lab) -> Mapping[str, Any]:
        """What gives R of a module when it is asked for: all of them at once would not fit into memory."""
        roots = Roots(lab, damp=self.damp, limit=self.memory * 2**30)
        return {module: partial(roots.of, module) for module in roots.reached}

    def select(self, scores: Sequence[LayerScore]) -> set[str]:
        """Every layer that has an update."""
        return set() if self._keeps_all else {score.module for score in scores if score.norm > 0}

    def edit(self, layer: Layer, score: LayerScore) -> Delta:
        """Steps 2 to 4; a module that no row reaches stays."""
        if layer.found is None:
            return layer.delta
        root = layer.found()
        delta = layer.delta.dense().float()
        kept = swept(delta.to(root.device), root, s=self.s, exclude=self.exclude, block=self.block, step=self.step)
        return Delta(b=kept.to(delta.device))

    @property
    def _keeps_all(self) -> bool:
        return self.s is None and self.exclude == 0


class Roots:
    """R of every module, found when it is asked for: one pass over the rows for a group of modules.

    Modules belong together as the engine edits them, file by file, so that each group is summed up once.
    """

    def __init__(self, lab: Lab, *, damp: float, limit: float) -> None:
        """Divide the modules into groups.

        Args:
            lab: with the aligned model and the rows.
            damp: of `root_of_inverse`.
            limit: bytes of H in a group; a group has at least one.
        """
        source = lab.source
        order = sorted(source.modules, key=lambda module: source.shards.index(source.weight(module).file))
        self._lab, self._damp = lab, damp
        self._twin = lab.same_inputs(lab.aligned, Need.ALIGNMENT, order)
        self._group: dict[str, tuple[str, ...]] = {}
        self.reached = [module for module in order if module in self._twin]
        widths = {module: source.weight(module).oriented[1] for module in self.reached}
        for modules in grouped(widths, self._twin, limit):
            self._group |= dict.fromkeys(modules, tuple(dict.fromkeys(self._twin[module] for module in modules)))
        self._moments: dict[str, Tensor] = {}
        self._roots: dict[str, Tensor] = {}

    def of(self, module: str) -> Float[Tensor, "i i"]:
        """R of a module.

        Args:
            module: one of `reached`.
        """
        own = self._group[module]
        if not self._held(own):
            self._moments.clear()
            self._roots.clear()
            sums = {name: (name, moments) for name in own}
            self._moments |= self._lab.sums(self._lab.aligned, Need.ALIGNMENT, sums)
        twin = self._twin[module]
        if twin not in self._roots:
            moment = self._moments.pop(twin)
            if not moment.isfinite().all():
                raise CheckpointError(f"what goes into {twin} of the aligned model is not finite on the safe rows")
            self._roots[twin] = root_of_inverse(moment, len(self._lab.rows[Need.ALIGNMENT]), self._damp)
        return self._roots[twin]

    def _held(self, group: tuple[str, ...]) -> bool:
        return {*self._moments, *self._roots} == set(group)


def grouped(widths: Mapping[str, int], twin: Mapping[str, str], limit: float) -> list[list[str]]:
    """Modules in groups whose distinct H fit into `limit` bytes, in order.

    Args:
        widths: i by module.
        twin: modules with the same input by the first of them.
        limit: bytes in fp64; a group has at least one module.
    """
    groups: list[list[str]] = []
    size, inside = 0, set[str]()
    for module, width in widths.items():
        more = 0 if twin[module] in inside else 8 * width**2
        if not groups or (more and size + more > limit):
            groups.append([])
            size, inside, more = 0, set(), 8 * width**2
        groups[-1].append(module)
        size += more
        inside.add(twin[module])
    return groups


def root_of_inverse(moment: Float[Tensor, "i i"], rows: int, damp: float) -> Float[Tensor, "i i"]:
    """R upper triangular with R^T R = H^-1, in fp32.

    The Cholesky factor of H with its rows and columns in reverse gives H = U U^T with U upper triangular, and then
    R = U^-1: nothing is inverted but a triangle.

    Args:
        moment: sum of x x^T over tokens, in fp64; it is overwritten.
        rows: n.
        damp: added to diag H, relative to its mean.
    """
    h = moment.mul_(2 / rows)
    diagonal = h.diagonal()
    diagonal[diagonal == 0] = 1.0
    diagonal += damp * diagonal.mean()
    upper = torch.linalg.cholesky(h.flip(0, 1)).flip(0, 1)
    identity = torch.eye(len(h), dtype=h.dtype, device=h.device)
    return torch.linalg.solve_triangular(upper, identity, upper=True).float()


def affordable(
    gap: Float[Tensor, "o c"], d: Float[Tensor, " c"], budget: float | None, exclude: float
) -> Bool[Tensor, "o c"]:
    """Step 3: which entries of a block are kept.

    Args:
        gap: delta - E.
        d: of the block's columns.
        budget: relative to the mean of 1 / d^2; None: no budget.
        exclude: share of the entries that is never kept.
    """
    rows, columns = gap.shape
    sensitivity = d.double().reciprocal().square()
    order = sensitivity.argsort(stable=True)
    count = gap.numel() - int(exclude * gap.numel())
    if budget is not None:
        costs = (gap.double().square() * sensitivity)[:, order].T.flatten()[:count]
        count = int((costs.cumsum(0) <= budget * sensitivity.mean()).sum())
    first = torch.arange(gap.numel(), device=gap.device).reshape(columns, rows) < count
    kept = torch.empty_like(gap, dtype=torch.bool)
    kept[:, order] = first.T
    return kept


def swept(
    delta: Float[Tensor, "o i"], root: Float[Tensor, "i i"], *, s: float | None, exclude: float, block: int, step: int
) -> Float[Tensor, "o i"]:
    """Steps 3 and 4: the new update E.

    Args:
        delta: the update.
        root: R.
        s: budget.
        exclude: share of each block's entries that is never kept.
        block: columns that share a budget.
        step: columns between compensations.
    """
    rows, columns = delta.shape
    budget = None if s is None else s * (block / SIDE) * (rows / SIDE)
    new = torch.zeros_like(delta)
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        own, now, wanted = root[start:stop, start:stop], new[:, start:stop], delta[:, start:stop]
        d = own.diagonal()
        kept = affordable(wanted - now, d, budget, exclude)
        errors = torch.zeros_like(now)
        for first in range(0, stop - start, CHUNK * step):
            last = min(first + CHUNK * step, stop - start)
            for left in range(first, last, step):
                right = min(left + step, last)
                part, rest = slice(left, right), slice(right, last)
                errors[:, part] = torch.where(kept[:, part], now[:, part] - wanted[:, part], 0.0) / d[part]
                now[:, part] = torch.where(kept[:, part], wanted[:, part], now[:, part])
                now[:, rest] -= errors[:, part] @ own[part, rest]
            now[:, last:] -= errors[:, first:last] @ own[first:last, last:]
        new[:, stop:] -= errors @ root[start:stop, stop:]
    return new
