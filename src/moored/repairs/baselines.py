# SPDX-License-Identifier: Apache-2.0
"""The trivial repairs that any other must beat: shrink the update, drop part of it, walk back to the aligned model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from moored.errors import ConfigError, require, unknown
from moored.method import MethodInfo, Need
from moored.repairs.base import Delta, Layer, LayerScore, Repair, check_choice, every, first
from moored.repairs.safe_lora import of_angles, score_safety

if TYPE_CHECKING:
    from moored.repairs.report import LayerRow


@dataclass(frozen=True, kw_only=True)
class _Shrink(Repair):
    """Multiply the whole update by one factor."""

    every_tensor: ClassVar[bool] = True

    @property
    @abstractmethod
    def factor(self) -> float:
        """What the update is multiplied with."""

    def select(self, scores: Sequence[LayerScore]) -> set[str]:
        """Every layer."""
        return every(scores) if self.factor != 1 else set()

    def edit(self, layer: Layer, score: LayerScore) -> Delta:
        """The scaled update."""
        return layer.delta.times(self.factor)


@dataclass(frozen=True, kw_only=True)
class ScaleAdapter(_Shrink):
    """Multiply the update by a constant: delta <- scale * delta.

    Many published gains over an undefended run disappear beside a sweep of this one number.

    Args:
        scale: >= 0; 1 changes nothing, 0 is the aligned model, above 1 extrapolates.

    Needs:
        Nothing for an adapter; `aligned` for a full checkpoint.

    Cost:
        One read of the adapter.

    Raises:
        ConfigError: `scale` is negative.

    Example:
        >>> repair("adapter", ScaleAdapter(scale=0.5), out="half")  # doctest: +SKIP
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="scale_adapter",
        title="Scale the update",
        authors="",
        arxiv="",
        venue="",
        year=2026,
        stage="post-fine-tuning",
        fidelity="paper",
        null={"scale": 1.0},
        cost="reads the adapter once",
    )
    strengths: ClassVar[Mapping[str, Sequence[Any]]] = {"scale": (0.75, 0.5, 0.25)}

    scale: float = 0.5

    def __post_init__(self) -> None:
        """Validate."""
        require(0 <= self.scale < float("inf"), "ScaleAdapter", "scale", ">= 0 and finite", self.scale)

    @property
    def factor(self) -> float:
        """`scale`."""
        return self.scale


@dataclass(frozen=True, kw_only=True)
class Interpolate(_Shrink):
    """Walk back towards the aligned model: theta = (1 - lam) tuned + lam aligned.

    On an update this is a factor 1 - lam, so it equals `ScaleAdapter(scale=1 - lam)`; it is here under the name and
    the letter that the literature on weight interpolation uses.

    Paper:
        Wortsman et al., "Robust fine-tuning of zero-shot models", arXiv 2109.01903 (CVPR 2022).

    Args:
        lam: share of the aligned model, 0-1; 0 changes nothing, 1 is the aligned model.

    Needs:
        Nothing for an adapter; `aligned` for a full checkpoint.

    Cost:
        One read of the adapter.

    Raises:
        ConfigError: `lam` outside 0-1.

    Example:
        >>> repair("tuned", Interpolate(lam=0.3), aligned="aligned", out="mixed")  # doctest: +SKIP
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="interpolate",
        title="Robust fine-tuning of zero-shot models",
        authors="Wortsman et al.",
        arxiv="2109.01903",
        venue="CVPR",
        year=2022,
        stage="post-fine-tuning",
        fidelity="paper",
        null={"lam": 0.0},
        cost="reads the adapter once",
    )
    strengths: ClassVar[Mapping[str, Sequence[Any]]] = {"lam": (0.25, 0.5, 0.75)}

    lam: float = 0.5

    def __post_init__(self) -> None:
        """Validate."""
        require(0 <= self.lam <= 1, "Interpolate", "lam", "in 0-1", self.lam)

    @property
    def factor(self) -> float:
        """1 - lam."""
        return 1.0 - self.lam


@dataclass(frozen=True, kw_only=True)
class DropModules(Repair):
    """Throw away the update of some modules: delta <- 0.

    The ablation of every projecting repair. Safe LoRA's operator mostly shrinks (see `SafeLoRA`), so
    `DropModules(by="cosine", fraction=f)` tells what `SafeLoRA(fraction=f)` adds to plain dropping.

    Args:
        k: how many modules, or
        fraction: which part of them, 0-1, or
        names: which, as full paths or their last parts ("layers.3.mlp.up_proj", "q_proj"). Exactly one of the three.
        by: which go first with `k` or `fraction`: "norm", the largest update ||delta||, or "cosine", the smallest
            cosine of Safe LoRA.

    Needs:
        by="cosine": `aligned` and `base`. Otherwise nothing for an adapter, and `aligned` for a full checkpoint.

    Cost:
        One read of the adapter; with by="cosine" as `SafeLoRA`.

    Raises:
        ConfigError: not exactly one of `k`, `fraction`, `names`; a value out of range; a name that no module has.

    Example:
        >>> repair("adapter", DropModules(names=("mlp.down_proj",)), out="dropped")  # doctest: +SKIP
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="drop_modules",
        title="Drop the update of some modules",
        authors="",
        arxiv="",
        venue="",
        year=2026,
        stage="post-fine-tuning",
        fidelity="paper",
        null={"fraction": 0.0},
        cost="reads the adapter once; by cosine, aligned and base too",
    )
    strengths: ClassVar[Mapping[str, Sequence[Any]]] = {"fraction": (0.25, 0.5, 0.75)}

    k: int | None = None
    fraction: float | None = None
    names: tuple[str, ...] | list[str] | None = None
    by: str = "norm"

    def __post_init__(self) -> None:
        """Validate."""
        check_choice("DropModules", k=self.k, fraction=self.fraction, names=self.names)
        if self.k is None and self.fraction is None and not self.names:
            raise ConfigError("DropModules needs one of `k`, `fraction` and `names`; got none")
        if self.by not in ("norm", "cosine"):
            raise unknown("value of `by` of DropModules", self.by, ("norm", "cosine"))

    def needs(self) -> frozenset[Need]:
        """Both models for the cosine."""
        return frozenset({Need.ALIGNED, Need.BASE}) if self.by == "cosine" else frozenset()

    def score(self, layer: Layer) -> LayerScore:
        """The norm, or Safe LoRA's cosine."""
        return score_safety(layer) if self.by == "cosine" else LayerScore.of(layer)

    def select(self, scores: Sequence[LayerScore]) -> set[str]:
        """By name, or the first by size or cosine among the modules that have an update."""
        if self.names:
            return self._named([score.module for score in scores])
        able = [s for s in scores if (s.cosine is not None if self.by == "cosine" else s.norm > 0)]
        values = [s.cosine if self.by == "cosine" and s.cosine is not None else -s.norm for s in able]
        return first(able, values, "DropModules", k=self.k, fraction=self.fraction)

    def edit(self, layer: Layer, score: LayerScore) -> Delta:
        """Zero."""
        return layer.delta.times(0.0)

    def remarks(self, rows: Sequence[LayerRow]) -> Sequence[str]:
        """What the cosines mean, if they decide."""
        return of_angles(rows)

    def _named(self, modules: list[str]) -> set[str]:
        chosen = set()
        for name in self.names or ():
            hits = {m for m in modules if m == name or m.endswith(f".{name}")}
            if not hits:
                raise unknown("module", name, modules)
            chosen |= hits
        return chosen
