# SPDX-License-Identifier: Apache-2.0
"""TIES: merge the update with a safe one, entry by entry, where they do not contradict each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from moored.errors import require
from moored.method import MethodInfo, Need
from moored.repairs.base import Delta, Form, Layer, LayerScore, Repair, every


@dataclass(frozen=True, kw_only=True)
class TIES(Repair):
    """Trim both updates, elect a sign for every entry, and average what agrees with it.

    Paper:
        Yadav, Tam, Choshen, Raffel, Bansal: TIES-Merging: Resolving Interference When Merging Models, NeurIPS 2023,
        arXiv 2306.01708.

    Algorithm:
        tau_1 = delta_f and tau_2 = delta_s, module by module:

        1. trim: keep the `density` greatest entries of each tau by magnitude     (`trimmed`)
        2. elect: s_ij = sign(sum_t tau_t,ij)
        3. merge: delta_ij = lam * mean of the tau_t,ij that are not zero and have the sign s_ij     (`agreed`)

    Args:
        density: share of entries kept, 0 < density <= 1.
        lam: scale of the merged update, >= 0.

    Needs:
        `safe`; `aligned` for a full checkpoint or for merging.

    Cost:
        One read of both updates and a sort of each; an adapter must be merged.

    Differs from paper:
        It trims over the whole vector; here over one weight at a time, as PEFT and mergekit do.

    Raises:
        ConfigError: a parameter is out of range.
        NeverSupported: an adapter without merging.

    Example:
        >>> repair("adapter", TIES(), aligned="chat", safe="s", merge=True, out="repaired")  # doctest: +SKIP
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="ties",
        title="TIES-Merging: Resolving Interference When Merging Models",
        authors="Yadav et al.",
        arxiv="2306.01708",
        venue="NeurIPS",
        year=2023,
        stage="post-fine-tuning",
        needs=frozenset({Need.SAFE}),
        fidelity="paper",
        differs="trims each weight by itself",
        cost="reads both updates and sorts them; an adapter is merged",
    )
    strengths: ClassVar[Mapping[str, Sequence[Any]]] = {"density": (0.5, 0.2)}
    every_tensor: ClassVar[bool] = True

    density: float = 0.2
    lam: float = 1.0

    def __post_init__(self) -> None:
        """Validate."""
        require(0 < self.density <= 1, "TIES", "density", "in 0-1, above 0", self.density)
        require(0 <= self.lam < float("inf"), "TIES", "lam", ">= 0 and finite", self.lam)

    @classmethod
    def paper(cls) -> TIES:
        """A fifth of the entries and lam = 1, the setting for merging without validation; not checked."""
        return cls(density=0.2, lam=1.0)

    @property
    def form(self) -> Form:
        """Single entries."""
        return "dense"

    def select(self, scores: Sequence[LayerScore]) -> set[str]:
        """Every layer."""
        return every(scores)

    def edit(self, layer: Layer, score: LayerScore) -> Delta:
        """Steps 1 to 3."""
        updates = [layer.delta, layer.update(Need.SAFE)]
        return Delta(b=self.lam * agreed([trimmed(u.dense().float(), self.density) for u in updates if u is not None]))


def trimmed(tau: Float[Tensor, "o i"], density: float) -> Float[Tensor, "o i"]:
    """The greatest entries by magnitude, zeros elsewhere; ties go by position.

    Args:
        tau: an update.
        density: share of entries kept, rounded to the nearest whole number.
    """
    kept = torch.zeros_like(tau).flatten()
    count = int(density * tau.numel() + 0.5)
    first = tau.flatten().abs().sort(descending=True, stable=True).indices[:count]
    kept[first] = tau.flatten()[first]
    return kept.view_as(tau)


def agreed(taus: Sequence[Float[Tensor, "o i"]]) -> Float[Tensor, "o i"]:
    """The mean of the entries whose sign is that of the sum; zero where there is none.

    Args:
        taus: trimmed updates.
    """
    stacked = torch.stack(list(taus))
    sign = stacked.sum(dim=0).sign()
    agrees = (stacked.sign() == sign) & (stacked != 0)
    return (stacked * agrees).sum(dim=0) / agrees.sum(dim=0).clamp(min=1)
