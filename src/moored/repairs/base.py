# SPDX-License-Identifier: Apache-2.0
"""The contract of repairs: score every layer, decide once over all of them, edit the ones chosen.

A repair sees one `Layer` at a time and never a model. It changes nothing it is given; the engine
(`moored.repairs.engine.repair`) reads, streams, writes and reports.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from moored.errors import NeedsError, require
from moored.hf.checkpoint import Weight, finite
from moored.hf.fused import Split
from moored.method import MethodInfo, Need
from moored.ops.lowrank import product_norm

if TYPE_CHECKING:
    from moored.repairs.lab import Lab
    from moored.repairs.report import LayerRow

Form = Literal["same", "more", "dense"]
"""What an edited update needs: the factor A that it had, factors of any rank, or a whole matrix."""


@dataclass(frozen=True, kw_only=True)
class Delta:
    """What tuning added to one weight: `scale * b @ a`, or `scale * b` where there is no `a`.

    Args:
        b: lora_B, or a dense update.
        a: lora_A; None for a dense update.
        scale: s, the adapter's alpha / r.
    """

    b: Float[Tensor, "o r"]
    a: Float[Tensor, "r i"] | None = None
    scale: float = 1.0

    def cpu(self) -> Delta:
        """The same on the CPU; a factor that is there already stays the very same tensor."""
        return replace(self, b=self.b.cpu(), a=None if self.a is None else self.a.cpu())

    @property
    def rank(self) -> int | None:
        """R of the factors; None for a dense update."""
        return None if self.a is None else self.a.shape[0]

    def norm(self) -> float:
        """The Frobenius norm of the update."""
        return abs(self.scale) * product_norm(self.b, self.a)

    def times(self, factor: float) -> Delta:
        """The update scaled by `factor`; A stays, so that its rank and its file layout do."""
        return replace(self, b=self.b * factor)

    def plus(self, other: Delta) -> Delta:
        """The exact sum: factors end to end, which adds up the ranks, or dense where one of the two is."""
        if self.a is None or other.a is None:
            return Delta(b=self.dense().float() + other.dense().float())
        b, a = torch.promote_types(self.b.dtype, other.b.dtype), torch.promote_types(self.a.dtype, other.a.dtype)
        return Delta(
            b=torch.cat([self.scale * self.b.to(b), other.scale * other.b.to(b)], dim=1),
            a=torch.cat([self.a.to(a), other.a.to(a)]),
        )

    def dense(self) -> Float[Tensor, "o i"]:
        """The update as a matrix: a dense one in its own type, a product in fp32 or wider."""
        if self.a is None:
            return self.scale * self.b
        work = torch.promote_types(torch.promote_types(self.b.dtype, self.a.dtype), torch.float32)
        return self.scale * (self.b.to(work) @ self.a.to(work))


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One tuned weight.

    Args:
        module: full path in the model, for example "model.layers.0.self_attn.q_proj".
        delta: the update tuned - aligned.
        aligned: the aligned model's weight, unread; None if that model was not given.
        base: the weight before alignment, unread; None if not given.
        others: by role, what reads the update of another model that started from `aligned` too (`update`).
        found: what `Repair.prepare` found out about the layer.
        device: where products with V are made; everything else is on the CPU.
    """

    module: str
    delta: Delta
    aligned: Weight | None = None
    base: Weight | None = None
    others: Mapping[Need, Callable[[], Delta]] = field(default_factory=dict, repr=False)
    found: Any = field(default=None, repr=False)
    device: torch.device = field(default=torch.device("cpu"), repr=False)

    def update(self, need: Need) -> Delta | None:
        """The update of another model, unaligned - aligned or safe - aligned; None where it is that of `aligned`.

        Args:
            need: `Need.UNALIGNED` or `Need.SAFE`.
        """
        return self.others[need]() if need in self.others else None

    def safety(self) -> Float[Tensor, "o i"]:
        """V = aligned - base on `device`, in fp32 or wider; vectors count as one column.

        Raises:
            NeedsError: a model is missing.
            CheckpointError: NaN or infinite weights.
        """
        if self.aligned is None or self.base is None:
            raise NeedsError(f"{self.module}: V = aligned - base; give both models")
        aligned, base = finite(self.aligned), finite(self.base)
        work = torch.promote_types(torch.promote_types(aligned.dtype, base.dtype), torch.float32)
        difference = aligned.to(self.device).to(work) - base.to(self.device).to(work)
        return difference if difference.dim() == 2 else difference.reshape(-1, 1)

    def nbytes(self, *, models: bool) -> int:
        """The size of the update's factors, and of the two models' weights if `models`."""
        factors = [t.nbytes for t in (self.delta.b, self.delta.a) if t is not None]
        return sum(factors) + sum(w.nbytes for w in (self.aligned, self.base) if models and w is not None)


@dataclass(frozen=True, kw_only=True)
class LayerScore:
    """What pass 1 found out about a layer; None stands for "not measured" or "not defined".

    Args:
        module: of the layer.
        norm: ||delta||.
        cosine: angle between the update and its projection, 0-1.
        null_cosine: the same angle for a random update.
        signed: cosine between update and safety vector, -1..1; negative undoes the alignment.
        safety_norm: ||aligned - base||.
        candidate: the edited update, if scoring computed it anyway and it is small.
    """

    module: str
    norm: float
    cosine: float | None = None
    null_cosine: float | None = None
    signed: float | None = None
    safety_norm: float | None = None
    candidate: Delta | None = field(default=None, repr=False)

    @classmethod
    def of(cls, layer: Layer) -> LayerScore:
        """The size of the update and nothing else."""
        return cls(module=layer.module, norm=layer.delta.norm())

    @classmethod
    def beside_safety(cls, layer: Layer) -> LayerScore:
        """The sizes of the update and of the safety vector."""
        return replace(cls.of(layer), safety_norm=float(layer.safety().norm()))


@dataclass(frozen=True, kw_only=True)
class Repair(ABC):
    """Base of repairs: frozen configurations.

    Attributes:
        info: the published method. `info.needs` are the roles (`Need.ALIGNED`, `Need.BASE`) without which `repair`
            refuses to start; a full checkpoint needs `aligned` with any method, because its update is tuned - aligned.
        strengths: values to try of the parameter that decides how much is repaired, weakest first.
        every_tensor: on a full checkpoint, edits norms, biases and embeddings too, not only linear layers.
        revision: raised when the same inputs give other weights, so that a store repairs anew.
    """

    info: ClassVar[MethodInfo]
    strengths: ClassVar[Mapping[str, Sequence[Any]]] = {}
    every_tensor: ClassVar[bool] = False
    revision: ClassVar[int] = 1

    def needs(self) -> frozenset[Need]:
        """Roles that this configuration cannot work without."""
        return self.info.needs

    def parameters(self) -> dict[str, Any]:
        """The configuration as plain JSON, defaults resolved."""
        return asdict(self)

    @classmethod
    def ladder(cls) -> tuple[Repair, ...]:
        """The method at each of its `strengths`, or as it comes."""
        return tuple(cls(**{name: value}) for name, values in cls.strengths.items() for value in values) or (cls(),)

    @property
    def form(self) -> Form:
        """What an edited update needs; an adapter cannot hold "dense", so it must be merged."""
        return "same"

    @property
    def fused(self) -> Split:
        """How fused attention weights are taken apart into layers; None leaves them as they are stored."""
        return None

    def prepare(self, lab: Lab) -> Mapping[str, Any]:
        """Before pass 1: run a model. What is returned for a module is `found` in its layer.

        Args:
            lab: the tuned weights, the model that they make, and the rows.
        """
        return {}

    def score(self, layer: Layer) -> LayerScore:
        """Pass 1: look at one layer."""
        return LayerScore.of(layer)

    @abstractmethod
    def select(self, scores: Sequence[LayerScore]) -> set[str]:
        """The global decision: names of the modules to edit."""

    def remarks(self, rows: Sequence[LayerRow]) -> Sequence[str]:
        """Afterwards: what a reader of the report should know about this method's numbers.

        Args:
            rows: of all modules.
        """
        return ()

    @abstractmethod
    def edit(self, layer: Layer, score: LayerScore) -> Delta:
        """Pass 2: the new update of a selected layer, wherever it was computed."""


def every(scores: Sequence[LayerScore]) -> set[str]:
    """All modules: the choice of repairs that choose nothing."""
    return {score.module for score in scores}


def check_choice(method: str, *, k: int | None, fraction: float | None, **others: object) -> None:
    """Validate the ways of saying which modules: at most one is given, in range.

    Raises:
        ConfigError: two are given, `k` < 0, or `fraction` outside 0-1.
    """
    given = [n for n, value in {"k": k, "fraction": fraction, **others}.items() if value is not None]
    require(len(given) < 2, method, " and ".join(given), "one at a time", "both")
    if k is not None:
        require(k >= 0, method, "k", ">= 0", k)
    if fraction is not None:
        require(0 <= fraction <= 1, method, "fraction", "in 0-1", fraction)


def first(
    scores: Sequence[LayerScore], values: Sequence[float], method: str, *, k: int | None, fraction: float | None
) -> set[str]:
    """The modules with the smallest values; ties go by name, so that the order of files never matters.

    Args:
        scores: the layers to choose from.
        values: one per layer.
        method: for the error.
        k: how many, or
        fraction: which part of them, rounded to the nearest whole number.

    Raises:
        ConfigError: `k` is more than there are.
    """
    if k is not None:
        require(k <= len(scores), method, "k", f"at most the {len(scores)} modules that can be edited", k)
    count = k if k is not None else int((fraction or 0.0) * len(scores) + 0.5)
    ranked = sorted(zip(values, (s.module for s in scores), strict=True))
    return {module for _, module in ranked[:count]}


BASE = Repair
