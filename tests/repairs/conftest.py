# SPDX-License-Identifier: Apache-2.0
"""A tiny base model, an aligned model near it, and an adapter made by plain PEFT."""

from types import SimpleNamespace

import pytest

from repairs.repair_models import save_adapter, save_pair

NAMES = {"adapter": 3, "unaligned": 5, "safe": 6}
"""Adapters on the aligned model, and the seeds of their factors."""


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """The models, never written to."""
    return save_pair(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def trio(pair, tmp_path_factory):
    """Models, a plain adapter, and two further ones on the same modules; never written to."""
    aligned, base = pair
    root = tmp_path_factory.mktemp("adapter")
    made = {name: save_adapter(aligned, root / name, seed=seed) for name, seed in NAMES.items()}
    return SimpleNamespace(aligned=aligned, base=base, **made)
