# SPDX-License-Identifier: Apache-2.0
"""Where tensors are multiplied and models run, and how exactly: the machine's accelerator or the CPU, bf16 or fp32."""

from __future__ import annotations

from typing import Literal

import torch

from moored.errors import require

DType = Literal["float32", "bfloat16"]
"""Precision of weights in memory, and of the products with them."""


def device_for(name: str | None, method: str) -> torch.device:
    """The device of that name; without one, the accelerator that this machine has, else the CPU.

    Apple's has no fp64, in which sums are added up here, so it is never taken.

    Args:
        name: for example "cpu", "cuda" or "cuda:1"; None: the best there is.
        method: for the error.

    Raises:
        ConfigError: this machine has no such device.
    """
    known = devices()
    require(name is None or name in known, method, "device", f"a device of this machine ({', '.join(known)})", name)
    return torch.device(name or known[min(1, len(known) - 1)])


def devices() -> list[str]:
    """Names of the devices here: "cpu", and of an accelerator its type and each of its units."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if found is None or found.type == "mps":
        return ["cpu"]
    return ["cpu", found.type, *(f"{found.type}:{n}" for n in range(torch.accelerator.device_count()))]


def precision() -> DType:
    """The precision in which models are trained and served on this machine: bfloat16 where it is multiplied as such.

    A CPU without instructions for it takes four to nine times as long as in float32.
    """
    device = device_for(None, "precision")
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device.type != "cpu":
        return "bfloat16"
    known = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bfloat16" if known else "float32"
