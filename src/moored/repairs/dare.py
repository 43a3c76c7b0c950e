# SPDX-License-Identifier: Apache-2.0
"""DARE: drop random entries of the update and rescale the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from moored.errors import require
from moored.hf.checkpoint import core
from moored.method import MethodInfo
from moored.randomness import named_stream
from moored.repairs.base import Delta, Form, Layer, LayerScore, Repair, every


@dataclass(frozen=True, kw_only=True)
class DARE(Repair):
    """Set a random share of the update's entries to zero and scale the others up, so that its mean stays.

    Not made for safety; RESTA uses it before it adds its vector, and as a repair of its own it is the control for all
    that choose which entries to remove.

    Paper:
        Yu, Yu, Yu, Huang, Li: Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free
        Lunch, ICML 2024, arXiv 2311.03099.

    Algorithm:
        delta <- m * delta / (1 - drop), with m_ij = 0 with probability `drop`, else 1.

    Args:
        drop: probability, 0 <= drop < 1; 0 changes nothing.
        seed: of the masks; each module has its own, a function of its name.

    Needs:
        Nothing but `aligned` for a full checkpoint or for merging.

    Cost:
        One read of the update; it stays no product of factors, so an adapter must be merged.

    Differs from paper:
        Nothing. PEFT's "dare_linear" draws masks for A and B apart, which is another operation.

    Raises:
        ConfigError: `drop` outside 0-1.
        NeverSupported: an adapter without merging.

    Example:
        >>> repair("adapter", DARE(drop=0.5), aligned="chat", merge=True, out="repaired")  # doctest: +SKIP
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="dare",
        title="Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch",
        authors="Yu et al.",
        arxiv="2311.03099",
        venue="ICML",
        year=2024,
        stage="post-fine-tuning",
        fidelity="paper",
        null={"drop": 0.0},
        cost="reads the update once; an adapter is merged",
    )
    strengths: ClassVar[Mapping[str, Sequence[Any]]] = {"drop": (0.5, 0.9)}
    every_tensor: ClassVar[bool] = True

    drop: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        """Validate."""
        require(0 <= self.drop < 1, "DARE", "drop", "in 0-1, below 1", self.drop)

    @classmethod
    def paper(cls) -> DARE:
        """Half of the entries: the mildest of the paper's rates as reimplementations have them; not checked."""
        return cls(drop=0.5)

    @property
    def form(self) -> Form:
        """Single entries."""
        return "dense"

    def select(self, scores: Sequence[LayerScore]) -> set[str]:
        """Every layer."""
        return every(scores) if self.drop else set()

    def edit(self, layer: Layer, score: LayerScore) -> Delta:
        """The masked and rescaled update."""
        delta = layer.delta.dense().float()
        return Delta(b=delta * kept(core(layer.module), tuple(delta.shape), self.drop, self.seed) / (1 - self.drop))


def kept(module: str, shape: tuple[int, ...], drop: float, seed: int) -> Bool[Tensor, "o i"]:
    """The mask m: a function of the module's name and the seed, whatever the order of files.

    Args:
        module: its name, without wrappers.
        shape: of the update.
        drop: probability of a False.
        seed: of all masks.
    """
    return torch.rand(shape, generator=named_stream(module, seed)) >= drop
