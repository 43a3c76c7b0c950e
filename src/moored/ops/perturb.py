# SPDX-License-Identifier: Apache-2.0
"""Worst-case perturbation of hidden states (Vaccine, Sec. 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

NormScope = Literal["batch", "sample", "layer", "token"]

TINY = 1e-7
"""Added to the norm, as in the authors' code: a zero gradient gives a zero perturbation."""


def worst_case(
    grads: Sequence[Float[Tensor, "batch seq _"]], rho: float, scope: NormScope = "batch"
) -> list[Float[Tensor, "batch seq _"]]:
    """eps_l = rho * g_l / N: the first-order maximiser of the loss inside a ball of radius `rho`.

    The scope says which entries share one norm N, and so what the ball is drawn around:

    - "batch": all layers, rows and tokens together (the paper's Eq. 6): sum_l ||eps_l||^2 = rho^2.
    - "sample": all layers and tokens of one row: every row gets the radius `rho`.
    - "layer": all rows and tokens of one layer: every layer gets the radius `rho`.
    - "token": all layers of one token of one row: every token gets the radius `rho`.

    Args:
        grads: dL/de_l, one tensor per perturbed layer [loss per activation].
        rho: the radius in activation units, >= 0; 0 gives exactly zero.
        scope: see above.
    """
    wide = [g.float() for g in grads]
    if scope == "layer":
        return [rho * g / (g.norm() + TINY) for g in wide]
    axes = {"batch": (0, 1, 2), "sample": (1, 2), "token": (2,)}[scope]
    square = torch.stack([g.square().sum(dim=axes, keepdim=True) for g in wide]).sum(dim=0)
    scale = rho / (square.sqrt() + TINY)
    return [scale * g for g in wide]


def length(perturbation: Sequence[Float[Tensor, "..."]]) -> Float[Tensor, ""]:
    """sqrt(sum_l ||eps_l||^2): the Euclidean length over all layers together."""
    return torch.stack([eps.float().square().sum() for eps in perturbation]).sum().sqrt()
