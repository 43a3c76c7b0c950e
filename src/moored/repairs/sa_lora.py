# SPDX-License-Identifier: Apache-2.0
"""SaLoRA as a repair: take the update off the directions in which safe answers are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from moored.errors import require
from moored.method import MethodInfo, Need
from moored.repairs.base import Delta, Layer, LayerScore, Repair, every
from moored.repairs.lab import Lab

HELD = 1 << 30
"""Bytes of second moments, of all modules together, up to which they are summed up in one pass."""

OVERSAMPLED, PASSES = 16, 3
"""Further directions, and passes over the rows, of the subspace iteration."""


@dataclass(frozen=True, kw_only=True)
class SaLoRA(Repair):
    """Remove from an update what would change a module's output in the directions that matter on safe rows.

    A data-driven cousin of Safe LoRA that removes instead of keeping: what is left cannot touch those directions.

    Paper:
        Li, Si, Backes, Zhang, Wang: SaLoRA: Safety-Alignment Preserved Low-Rank Adaptation, ICLR 2025,
        arXiv 2501.01765. There C is in the adapter during training.

    Algorithm:
        For each tuned module with aligned weight W and inputs x over all tokens of the safe rows:

        1. U = the first `rank` eigenvectors of sum (W x)(W x)^T                   (`SaLoRA.prepare`)
        2. C = I - U U^T, and B <- C B; C is a projector, so that a second time changes nothing

    Args:
        rank: directions that are protected, >= 0; 0 changes nothing. Authors: 32, from 128 rows.

    Needs:
        `aligned`, and `alignment`: harmful prompts with safe answers.

    Cost:
        The aligned model stays in memory. One pass over the rows, if o x o numbers in fp64 per module take `HELD` at
        most (16 GiB would be needed for four matrices of each layer of a 7B model); else four passes of a subspace
        iteration, with o (rank + 16) numbers per module. Neither grows with the rows.

    Differs from paper:
        Applied to any tuned adapter, after training; its initialisation from task data is left out.

    Raises:
        ConfigError: `rank` is negative.
        NeedsError: the aligned model or the rows are missing.

    Example:
        >>> repair("adapter", SaLoRA(), aligned="chat", alignment="rows.jsonl", out="repaired")  # doctest: +SKIP
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="sa_lora",
        title="SaLoRA: Safety-Alignment Preserved Low-Rank Adaptation",
        authors="Li, Mingjie et al.",
        arxiv="2501.01765",
        venue="ICLR",
        year=2025,
        stage="post-fine-tuning",
        needs=frozenset({Need.ALIGNED, Need.ALIGNMENT}),
        fidelity="variant",
        differs="its projection alone, after training instead of during it",
        null={"rank": 0},
        cost="one pass of the aligned model over the safe rows; four where second moments would take over 1 GiB",
    )
    revision: ClassVar[int] = 2  # 1 approximated the eigenvectors whatever they would have taken
    strengths: ClassVar[Mapping[str, Sequence[Any]]] = {"rank": (8, 32)}

    rank: int = 32

    def __post_init__(self) -> None:
        """Validate."""
        require(self.rank >= 0, "SaLoRA", "rank", "an integer >= 0", self.rank)

    @classmethod
    def paper(cls) -> SaLoRA:
        """The authors' code: 32 directions."""
        return cls(rank=32)

    def needs(self) -> frozenset[Need]:
        """Nothing has to be run to protect nothing."""
        return self.info.needs if self.rank else frozenset()

    def prepare(self, lab: Lab) -> Mapping[str, Any]:
        """U of every module."""
        if not self.rank:
            return {}
        modules = lab.source.modules
        if sum(8 * lab.source.weight(module).oriented[0] ** 2 for module in modules) <= HELD:
            found = lab.sums(lab.aligned, Need.ALIGNMENT, {m: (m, outer) for m in modules}, outputs=True)
            return {m: self._first(found.pop(m)) for m in list(found)}
        return self._iterated(lab)

    def _iterated(self, lab: Lab) -> Mapping[str, Any]:
        """Q <- orth(sum y (y^T Q)) over the outputs y of all tokens, once per pass; U within its span."""
        frames: dict[str, Tensor] = {}
        for _ in range(PASSES):
            sums: dict[str, Any] = {m: (m, partial(image, frames.get(m), self.rank)) for m in lab.source.modules}
            found = lab.sums(lab.aligned, Need.ALIGNMENT, sums, outputs=True)
            frames = {module: torch.linalg.qr(total).Q for module, total in found.items()}
        sums = {m: (m, partial(inside, frame)) for m, frame in frames.items()}
        small = lab.sums(lab.aligned, Need.ALIGNMENT, sums, outputs=True)
        return {m: frames[m] @ self._first(small[m]) for m in small}

    def _first(self, moment: Float[Tensor, "q q"]) -> Float[Tensor, "q rank"]:
        return torch.linalg.eigh(moment).eigenvectors[:, -self.rank :].clone()

    def select(self, scores: Sequence[LayerScore]) -> set[str]:
        """Every layer."""
        return every(scores) if self.rank else set()

    def edit(self, layer: Layer, score: LayerScore) -> Delta:
        """C B; a module that no row reaches stays."""
        u = layer.found
        if u is None:
            return layer.delta
        b = layer.delta.b.to(u)
        return replace(layer.delta, b=(b - u @ (u.T @ b)).to(layer.delta.b.dtype))


def outer(y: Float[Tensor, "tokens o"]) -> Float[Tensor, "o o"]:
    """Sum of y y^T over tokens, in fp64.

    Args:
        y: outputs.
    """
    wide = y.double()
    return wide.T @ wide


def image(frame: Float[Tensor, "o q"] | None, rank: int, y: Float[Tensor, "tokens o"]) -> Float[Tensor, "o q"]:
    """Sum of y (y^T Q) over tokens, with a random Q at first.

    Args:
        frame: Q; None: the first pass.
        rank: directions wanted.
        y: outputs.
    """
    if frame is None:
        count = min(y.shape[1], rank + OVERSAMPLED)
        frame = torch.randn(y.shape[1], count, generator=torch.Generator().manual_seed(0))
    return y.double().T @ (y.double() @ frame.to(y.device, torch.float64))


def inside(frame: Float[Tensor, "o q"], y: Float[Tensor, "tokens o"]) -> Float[Tensor, "q q"]:
    """Sum of (Q^T y)(Q^T y)^T over tokens.

    Args:
        frame: Q.
        y: outputs.
    """
    z = y.double() @ frame
    return z.T @ z
