# SPDX-License-Identifier: Apache-2.0
"""A tiny base model, an aligned model near it, and an adapter made by plain PEFT."""

from types import SimpleNamespace

import pytest

from repairs.repair_models import save_adapter, save_pair


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """The models, never written to."""
    return save_pair(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def trio(pair, tmp_path_factory):
    """Models and a plain adapter, never written to."""
    aligned, base = pair
    adapter = save_adapter(aligned, tmp_path_factory.mktemp("adapter") / "adapter")
    return SimpleNamespace(aligned=aligned, base=base, adapter=adapter)
