# SPDX-License-Identifier: Apache-2.0
"""The weight-space oracle: what an attacker could do who wrote the weights instead of the rows."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import pad
from transformers.pytorch_utils import Conv1D

from moored.attacks.access import Access
from moored.errors import require
from moored.hf.adapters import WEIGHTS
from moored.method import Need
from moored.ops.truncation import leading
from moored.repairs.engine import beside, fresh

MANIFEST = "manifest.json"

Factors = tuple[Float[Tensor, "o k"], Float[Tensor, "k i"]]


@dataclass(frozen=True, kw_only=True)
class WeightOracle:
    """An update straight along the negative alignment vector, as a LoRA adapter on the aligned model.

    It is no `Attack`: an uploader sends rows, and this writes weights. What it makes stands where a fine-tuned adapter
    does, before `repair` and `audit`, as the bound that attacks by rows along that vector are measured against.

    Paper:
        None of its own: attack A0, variant (ii), of the adaptive attacks on Safe LoRA (arXiv 2405.16833), whose gate is
        blind to the sign of an update.

    Algorithm:
        V_l = W_aligned - W_base = U S Q^T of linear layer l, V_lk its k first directions (`ops.truncation.leading`):

        Delta_l = -eta V_lk, one eta for all layers, such that (sum_l ||Delta_l||^2)^1/2 = norm (sum_l ||V_l||^2)^1/2

    Args:
        norm: length of the update in lengths of V, > 0. At 1, with every direction, the linear layers are the base's.
        k: directions, and rank of the adapter, >= 1.

    Needs:
        aligned and base.

    Cost:
        A truncated singular value decomposition per linear layer, and as much memory as they take in fp32.

    Raises:
        ConfigError: a value is out of range.
    """

    name: ClassVar[str] = "weight_oracle"
    norm: float | int = 1.0
    k: int = 8

    def __post_init__(self) -> None:
        require(0 < self.norm < float("inf"), "WeightOracle", "norm", "> 0 and finite", self.norm)
        require(isinstance(self.k, int) and self.k >= 1, "WeightOracle", "k", "an integer >= 1", self.k)

    def factors(self, safety: Mapping[str, Float[Tensor, "o i"]]) -> dict[str, Factors]:
        """B and A of every layer, Delta = B A.

        Args:
            safety: V by module, not all of them zero.
        """
        cut = {name: leading(v, self.k) for name, v in safety.items()}
        whole = torch.stack([v.double().norm() for v in safety.values()]).norm()
        kept = torch.stack([left.double().norm() for left, _ in cut.values()]).norm()
        eta = float(self.norm * whole / kept)
        return {name: (-eta * left, right) for name, (left, right) in cut.items()}

    def write(self, access: Access, out: str | Path) -> dict[str, Any]:
        """Write the adapter and a manifest into a new folder.

        Args:
            access: to the aligned model and its base.
            out: the folder, which must not exist.

        Returns:
            The manifest: parameters, the length of the update and of V, the files that were read.

        Raises:
            ConfigError: `out` exists.
            NeedsError, NeverSupported, CheckpointError: see `Access.safety`.
        """
        out, factors = fresh(out), self.factors(access.safety)
        manifest = {
            "attack": self.name,
            "parameters": asdict(self),
            "norm": _length([left for left, _ in factors.values()]),
            "safety_norm": _length(list(access.safety.values())),
            "modules": len(factors),
            "models": access.record((Need.ALIGNED, Need.BASE)),
        }
        with beside(out) as folder:
            self._save(access, factors, folder)
            (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
            os.rename(folder, out)
        return manifest

    def _save(self, access: Access, factors: Mapping[str, Factors], folder: Path) -> None:
        """The files of a PEFT adapter; alpha = r, so that the scale is 1."""
        LoraConfig(
            r=self.k,
            lora_alpha=self.k,
            target_modules=list(factors),
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in access.modules.values()),
            task_type="CAUSAL_LM",
        ).save_pretrained(str(folder))
        tensors = {}
        for name, (left, right) in factors.items():
            short = self.k - left.shape[1]  # a layer with fewer directions has no use for the rest of the rank
            tensors[f"base_model.model.{name}.lora_A.weight"] = pad(right, (0, 0, 0, short)).cpu().contiguous()
            tensors[f"base_model.model.{name}.lora_B.weight"] = pad(left, (0, short)).cpu().contiguous()
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def _length(matrices: list[Float[Tensor, "_ _"]]) -> float:
    """Of all matrices as one vector; A has orthonormal rows, so B alone is as long as B A."""
    return float(torch.stack([m.double().norm() for m in matrices]).norm())
