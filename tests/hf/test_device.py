# SPDX-License-Identifier: Apache-2.0
"""Which devices there are, on machines that this one is not."""

import pytest
import torch

from moored.errors import ConfigError
from moored.hf.device import device_for, devices, precision


@pytest.fixture
def machine(monkeypatch):
    """Pretends that there is an accelerator, or none."""

    def pretend(kind, count=1):
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: kind is not None)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)

    return pretend


def test_the_accelerator_is_taken_if_there_is_one(machine):
    machine("cuda", 2)
    assert devices() == ["cpu", "cuda", "cuda:0", "cuda:1"]
    assert device_for(None, "repair") == torch.device("cuda")
    assert device_for("cuda:1", "repair") == torch.device("cuda:1")
    assert device_for("cpu", "repair") == torch.device("cpu")


@pytest.mark.parametrize("kind", [None, "mps"])
def test_else_the_cpu(kind, machine):
    machine(kind)
    assert device_for(None, "repair") == device_for("cpu", "repair") == torch.device("cpu")
    for absent in ("cuda", "mps", "cuda:0", "gpu", "meta", ""):
        with pytest.raises(ConfigError, match=r"`device` of repair must be a device of this machine \(cpu\); got "):
            device_for(absent, "repair")


def test_a_unit_that_is_not_there(machine):
    machine("cuda", 2)
    with pytest.raises(ConfigError, match=r"\(cpu, cuda, cuda:0, cuda:1\); got 'cuda:2'"):
        device_for("cuda:2", "repair")


@pytest.mark.parametrize("native", [True, False])
def test_models_are_served_in_what_the_machine_multiplies(native, machine, monkeypatch):
    expected = "bfloat16" if native else "float32"
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native)
    machine(None)
    assert precision() == expected
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    machine("cuda")
    assert precision() == expected
