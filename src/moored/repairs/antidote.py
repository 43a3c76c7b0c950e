# SPDX-License-Identifier: Apache-2.0
"""Antidote: prune the weights that harmful answers lean on most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from moored.errors import NeverSupported, require
from moored.hf.checkpoint import finite
from moored.hf.statistics import squares, through
from moored.method import MethodInfo, Need
from moored.repairs.base import Delta, Form, Layer, LayerScore, Repair
from moored.repairs.lab import Lab

TARGETS = ("factors", "update", "weights")


@dataclass(frozen=True, kw_only=True)
class Antidote(Repair):
    """After tuning, set to zero the entries with the largest Wanda scores on harmful rows.

    Paper:
        Huang, Bhattacharya, Joshi, Kimball, Liu: Antidote: Post-fine-tuning Safety Alignment for Large Language Models
        against Harmful Fine-tuning, ICML 2025, arXiv 2408.09600.

    Algorithm:
        For a matrix M with input x, over all tokens of the harmful rows:

        1. S_ij = |M_ij| ||x_j||, ||x_j||^2 = sum of x_j^2 over tokens            (`Antidote.prepare`, one pass)
        2. in every row of M, the `alpha` of its entries with the largest S: M_ij <- 0     (`pruned`)

        M is lora_A (whose input is the module's) and lora_B (whose input is A x), each by itself.

    Args:
        alpha: share of every row that is pruned, 0-1, rounded up; 0 changes nothing. Authors' scripts: 0.1 for SST-2,
            0.05 for GSM8K, 0.01 for Alpaca, 1e-5 for full fine-tuning.
        target: what M is. "factors": A and B, as the authors do with adapters. "update": the update as a matrix, so
            that what is pruned goes back to the aligned model. "weights": the whole tuned weight, as the authors do
            with full fine-tuning. The last two cannot be held by an adapter.

    Needs:
        `harmful`: harmful prompts with harmful answers; `aligned`, to run the model.

    Cost:
        One pass of the tuned model over the rows; one number per input channel and per rank is kept, however many rows.

    Differs from paper:
        The scores are those of one ordinary pass: the authors go layer by layer, with unpruned weights, which is the
        same. Padding is left out. Full models are pruned in every linear layer, theirs in q, k and v.

    Raises:
        ConfigError: a parameter is out of range.
        NeedsError: rows or the aligned model are missing.
        NeverSupported: "factors" of what has none; anything else for an adapter without merging.

    Example:
        >>> repair("adapter", Antidote(), aligned="chat", harmful="rows.jsonl", out="repaired")  # doctest: +SKIP
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="antidote",
        title="Antidote: Post-fine-tuning Safety Alignment for Large Language Models against Harmful Fine-tuning",
        authors="Huang, Tiansheng et al.",
        arxiv="2408.09600",
        venue="ICML",
        year=2025,
        stage="post-fine-tuning",
        needs=frozenset({Need.ALIGNED, Need.HARMFUL}),
        fidelity="paper",
        differs="`update` and pruning of all linear layers are additions",
        null={"alpha": 0.0},
        cost="one pass of the tuned model over the harmful rows",
    )
    strengths: ClassVar[Mapping[str, Sequence[Any]]] = {"alpha": (0.05, 0.1, 0.2)}

    alpha: float = 0.1
    target: str = "factors"

    def __post_init__(self) -> None:
        """Validate."""
        require(0 <= self.alpha <= 1, "Antidote", "alpha", "in 0-1", self.alpha)
        require(self.target in TARGETS, "Antidote", "target", f"one of {', '.join(TARGETS)}", self.target)

    @classmethod
    def paper(cls) -> Antidote:
        """The authors' script for SST-2: a tenth of every row of both factors."""
        return cls(alpha=0.1, target="factors")

    @property
    def form(self) -> Form:
        """Pruned factors are factors."""
        return "same" if self.target == "factors" else "dense"

    def needs(self) -> frozenset[Need]:
        """Nothing has to be run to prune nothing."""
        return self.info.needs if self.alpha else frozenset()

    def prepare(self, lab: Lab) -> Mapping[str, Any]:
        """The squared norms of what goes into every module, and into lora_B."""
        modules = lab.source.modules
        sums: dict[str, Any] = {module: (module, squares) for module in modules}
        if self.target == "factors":
            factors = {module: _factor(lab.source.layer(module)) for module in modules}
            sums |= {f"{m} A x": (m, partial(through, a, squares)) for m, a in factors.items()}
        found = lab.sums(lab.model, Need.HARMFUL, sums)
        return {module: (found.get(module), found.get(f"{module} A x")) for module in modules}

    def select(self, scores: Sequence[LayerScore]) -> set[str]:
        """Every layer, but for factors without a product: to prune them would change nothing."""
        return {s.module for s in scores if s.norm > 0 or self.target == "weights"} if self.alpha else set()

    def edit(self, layer: Layer, score: LayerScore) -> Delta:
        """Step 2; a module that no row reaches stays."""
        outer, inner = layer.found
        delta = layer.delta
        if outer is None:
            return delta
        if self.target == "factors":
            b, a = pruned(delta.b, inner.sqrt(), self.alpha), pruned(_factor(layer), outer.sqrt(), self.alpha)
            return replace(delta, b=b, a=a)
        update = delta.dense().float()
        if self.target == "update" or layer.aligned is None:
            return Delta(b=pruned(update, outer.sqrt(), self.alpha))
        start = finite(layer.aligned).float()
        return Delta(b=pruned(start + update, outer.sqrt(), self.alpha) - start)


def pruned(matrix: Float[Tensor, "o i"], norms: Float[Tensor, " i"], alpha: float) -> Float[Tensor, "o i"]:
    """A matrix without the entries of each row that score highest.

    Args:
        matrix: M.
        norms: ||x_j|| per column.
        alpha: share of a row; cols - int(cols (1 - alpha)) entries go, as in the authors' code.
    """
    columns = matrix.shape[1]
    count = columns - int(columns * (1 - alpha))
    scores = matrix.float().abs() * norms.to(matrix.device, torch.float32)
    return matrix.scatter(1, scores.topk(count, dim=1).indices, 0.0)


def _factor(layer: Layer) -> Float[Tensor, "r i"]:
    if layer.delta.a is None:
        raise NeverSupported(
            f'{layer.module} has no factors to prune; take Antidote(target="update") or Antidote(target="weights")'
        )
    return layer.delta.a
