# SPDX-License-Identifier: Apache-2.0
"""Model inversion: benign rows whose training would walk along the alignment vector, as cover for harmful ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from moored.attacks.access import Access
from moored.attacks.base import Choice, granted
from moored.attacks.choosing import Choosing
from moored.data.schema import Source
from moored.errors import require, unknown
from moored.hf.factored import Measure
from moored.method import Fidelity, Need
from moored.ops.factored import sketch
from moored.ops.selection import greedy_match, mean_cosine
from moored.ops.spectral import directions

SIGNS = {"base": 1.0, "aligned": -1.0}
"""Of V in a gradient whose descent goes there."""

Frame = tuple[Float[Tensor, "o k"], Float[Tensor, "k i"]]


@dataclass(frozen=True, kw_only=True)
class ModelInversion(Choosing):
    """A harmful mix whose benign rows together push the weights along the alignment vector.

    Toward the base they undo the alignment without one harmful row; toward the aligned model they lend the harmful
    rows an update that a repair takes for safe. Safe LoRA's gate is blind to the sign, so either may pass it.

    Paper:
        Hsu et al.: Safe LoRA: the Silver Lining of Reducing Safety Risks when Fine-tuning Large Language Models,
        NeurIPS 2024, arXiv 2405.16833: the authors outline it as adaptive attack II in the review discussion
        (OpenReview HcifdQZFZV). The objective below is ours.

    Algorithm:
        V_l = W_aligned - W_base of linear layer l, U_l and Q_l two frames of k directions, G_l(x) the gradient of row x
        at the aligned model:

        1. s_l(x) = U_l^T G_l(x) Q_l for every candidate (`ops.factored.sketch`), and t_l = +-U_l^T V_l Q_l: descent,
           -G, goes toward the base with +;
        2. from nothing, add the row that raises mean_l cos(sum_x s_l(x), t_l) most (`ops.selection.greedy_match`),
           until there are as many as needed.

    Args:
        n: rows of the upload, at least 1.
        ratio: share of harmful rows, drawn as `HarmfulMix` does, 0 to 1.
        seed: of the draws, of the order and of random frames.
        pool: benign rows looked at, at least 1.
        toward: "base" or "aligned", see above.
        k: directions of each frame, >= 1. Ours: 8, the least of the outline's 64 to 256 numbers per layer.
        frame: "alignment", the k first singular directions of V_l, or "random", Gaussian, which also sees what a row
            does beside V.

    Needs:
        aligned and base.

    Cost:
        A forward and a backward pass for each candidate, as much memory as the linear layers take in fp32, and k^2
        numbers per candidate and layer.

    Differs from paper:
        See `differs`.

    Raises:
        ConfigError: a value is out of range.
        NeedsError: a model is missing.
    """

    name: ClassVar[str] = "model_inversion"
    chooses: ClassVar[Source] = "benign"
    fidelity: ClassVar[Fidelity | None] = "variant"
    differs: ClassVar[str] = (
        "cover rows are chosen greedily from real ones on sketches of their gradients, not optimised as embeddings and "
        "rounded; terms for fluency and for a guard fall away with that"
    )
    toward: str = "base"
    k: int = 8
    frame: str = "alignment"

    def __post_init__(self) -> None:
        super().__post_init__()
        for parameter, known in (("toward", SIGNS), ("frame", FRAMES)):
            if getattr(self, parameter) not in known:
                raise unknown(f"`{parameter}` of ModelInversion", getattr(self, parameter), known)
        require(isinstance(self.k, int) and self.k >= 1, "ModelInversion", "k", "an integer >= 1", self.k)

    def needs(self) -> frozenset[Need]:
        """V is the difference of two models."""
        return frozenset({Need.ALIGNED, Need.BASE})

    def choose(self, drawn: Choice, access: Access | None) -> Choice:
        """Steps 1 and 2."""
        access = granted(self, access)
        count = self.n - self.harmful_count
        if not count:
            return replace(drawn, benign=[])
        draws = torch.Generator().manual_seed(self.seed)
        frames = {name: FRAMES[self.frame](v, self.k, draws) for name, v in access.safety.items()}
        seen = [_padded(frames[name][0].T @ v @ frames[name][1].T, self.k) for name, v in access.safety.items()]
        target = SIGNS[self.toward] * torch.stack(seen).cpu()
        _, (sketches,) = access.measured([each.row for each in drawn.benign], [_through(frames, self.k)])
        order = greedy_match(sketches, target, count)
        found: dict[str, Any] = {
            "candidates": {"benign": len(drawn.benign)},
            "models": access.record(self.needs()),
            "measured": {
                "cosine": {
                    "chosen": mean_cosine(sketches[order].sum(dim=0), target),
                    "drawn": mean_cosine(sketches[:count].sum(dim=0), target),
                }
            },
        }
        return Choice(harmful=drawn.harmful, benign=[drawn.benign[at] for at in order], found=found)


def aligned_frame(v: Float[Tensor, "o i"], k: int, draws: torch.Generator) -> Frame:
    """U_k and Q_k^T of V, or nothing where V is zero.

    Args:
        v: V.
        k: directions.
        draws: unused.
    """
    return directions(v, k) if v.any() else (v[:, :0], v[:0])


def random_frame(v: Float[Tensor, "o i"], k: int, draws: torch.Generator) -> Frame:
    """Gaussian frames, which keep inner products of matrices on average: E <U^T A Q, U^T B Q> = <A, B>.

    Args:
        v: for its shape.
        k: directions.
        draws: the source of randomness.
    """
    outputs, inputs = v.shape
    left, right = torch.randn(outputs, k, generator=draws), torch.randn(k, inputs, generator=draws)
    return left.to(v) / k**0.5, right.to(v) / k**0.5


FRAMES: dict[str, Callable[[Float[Tensor, "o i"], int, torch.Generator], Frame]] = {
    "alignment": aligned_frame,
    "random": random_frame,
}


def _through(frames: dict[str, Frame], k: int) -> Measure:
    """The sketch in the frame of each module."""
    return lambda name, delta, x: _padded(sketch(delta, x, *frames[name]), k)


def _padded(small: Float[Tensor, "*rows a b"], k: int) -> Float[Tensor, "*rows size"]:
    """As k^2 numbers, zeros where a layer has fewer directions: they change no angle."""
    return pad(small, (0, k - small.shape[-1], 0, k - small.shape[-2])).flatten(-2)
