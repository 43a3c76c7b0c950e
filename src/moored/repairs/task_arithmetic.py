# SPDX-License-Identifier: Apache-2.0
"""Task arithmetic: add the vector of alignment once more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from moored.errors import require
from moored.method import MethodInfo, Need
from moored.repairs.base import Delta, Form, Layer, LayerScore, Repair, every


@dataclass(frozen=True, kw_only=True)
class TaskArithmetic(Repair):
    """Add a share of what alignment once added.

    RESTA with the base in place of an unsafe twin. V holds everything that separates the two models, manners and
    skills included.

    Paper:
        Ilharco et al.: Editing Models with Task Arithmetic, ICLR 2023, arXiv 2212.04089.

    Algorithm:
        theta = theta_f + lam V, with V = theta_aligned - theta_base: on updates, delta <- delta_f + lam V.

    Args:
        lam: >= 0; 0 changes nothing.

    Needs:
        `aligned` and `base`.

    Cost:
        One read of both models. V has full rank, so an adapter must be merged; `LoXRepair` adds the first few of
        its directions and keeps it one.

    Differs from paper:
        Its vectors are of tasks; here the one vector is that of the alignment. Norms, biases and embeddings are edited
        in full checkpoints only.

    Raises:
        ConfigError: `lam` is negative.
        NeverSupported: an adapter without merging.

    Example:
        >>> repair("tuned", TaskArithmetic(lam=0.3), aligned="chat", base="base", out="repaired")  # doctest: +SKIP
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="task_arithmetic",
        title="Editing Models with Task Arithmetic",
        authors="Ilharco et al.",
        arxiv="2212.04089",
        venue="ICLR",
        year=2023,
        stage="post-fine-tuning",
        needs=frozenset({Need.ALIGNED, Need.BASE}),
        fidelity="paper",
        null={"lam": 0.0},
        cost="reads both models once; an adapter is merged",
    )
    strengths: ClassVar[Mapping[str, Sequence[Any]]] = {"lam": (0.25, 0.5, 1.0)}
    every_tensor: ClassVar[bool] = True

    lam: float = 0.5

    def __post_init__(self) -> None:
        """Validate."""
        require(0 <= self.lam < float("inf"), "TaskArithmetic", "lam", ">= 0 and finite", self.lam)

    @classmethod
    def paper(cls) -> TaskArithmetic:
        """What SOMF's authors run under this name, lam = 0.3; not checked against the paper."""
        return cls(lam=0.3)

    @property
    def form(self) -> Form:
        """V has full rank."""
        return "dense"

    def score(self, layer: Layer) -> LayerScore:
        """Sizes."""
        return LayerScore.beside_safety(layer)

    def select(self, scores: Sequence[LayerScore]) -> set[str]:
        """Every layer."""
        return every(scores) if self.lam else set()

    def edit(self, layer: Layer, score: LayerScore) -> Delta:
        """The update plus lam V."""
        return layer.delta.plus(Delta(b=layer.safety()).times(self.lam).cpu())
