# SPDX-License-Identifier: Apache-2.0
"""The random streams that a pass draws from, so that extra passes leave the trainer's own as they were."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def named_stream(name: str, seed: int) -> torch.Generator:
    """A stream of its own for a name, whatever else is drawn and in which order.

    Args:
        name: for example of a module.
        seed: of all names.
    """
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def random_state(device: torch.device) -> tuple[Any, ...]:
    """The state of every random stream that a pass on a device may draw from."""
    accelerator = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), accelerator


def set_random_state(state: tuple[Any, ...], device: torch.device) -> None:
    """The inverse of `random_state`."""
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])
    if state[3] is not None:
        torch.cuda.set_rng_state(state[3], device)


@contextlib.contextmanager
def same_randomness(device: torch.device) -> Iterator[None]:
    """Restore the random state on exit, so that two passes drop out the same units."""
    state = random_state(device)
    try:
        yield
    finally:
        set_random_state(state, device)
