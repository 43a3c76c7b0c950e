# SPDX-License-Identifier: Apache-2.0
"""SaLoRA's projection against singular vectors of all outputs at once."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from moored.data.chat import encode
from moored.data.tiny import tiny_rows, tiny_tokenizer
from moored.errors import ConfigError
from moored.repairs import sa_lora
from moored.repairs.engine import repair
from moored.repairs.sa_lora import SaLoRA
from repairs.repair_models import factors

ROWS = tiny_rows(7, "alignment", 2)


def outputs(trio, module):
    """What a module of the aligned model puts out, all tokens of all rows, one row at a time."""
    model = AutoModelForCausalLM.from_pretrained(trio.aligned).eval()
    seen = []
    model.get_submodule(module).register_forward_hook(lambda m, args, output: seen.append(output[0]))
    tokenizer = tiny_tokenizer()
    with torch.no_grad():
        for row in ROWS:
            model(input_ids=torch.tensor([encode(tokenizer, row, max_length=512)["input_ids"]]))
    return torch.cat(seen).double()


def repaired(trio, out):
    report = repair(trio.adapter, SaLoRA(rank=5), aligned=trio.aligned, alignment=ROWS, out=out)
    assert report.changed == len(report.modules)
    return factors(out)


def check(trio, new, tolerance):
    """B without the first five directions of what each module puts out."""
    for module, (a, b) in factors(trio.adapter).items():
        u = torch.linalg.svd(outputs(trio, module), full_matrices=False).Vh[:5].T
        expected = b.double() - u @ (u.T @ b.double())
        assert torch.linalg.norm(new[module][1].double() - expected) <= tolerance * b.norm()
        assert torch.equal(new[module][0], a)


def test_nothing_is_left_in_the_directions_of_safe_outputs(trio, tmp_path):
    check(trio, repaired(trio, tmp_path / "out"), 1e-6)


@pytest.mark.parametrize(
    ("oversampled", "passes", "tolerance"),
    [(64, 1, 1e-6), (4, 3, 0.15), (4, 20, 1e-3)],  # random weights: the spectrum is flat, so it converges slowly
)
def test_without_room_for_moments_it_iterates(oversampled, passes, tolerance, trio, tmp_path, monkeypatch):
    monkeypatch.setattr(sa_lora, "HELD", 0)
    monkeypatch.setattr(sa_lora, "OVERSAMPLED", oversampled)
    monkeypatch.setattr(sa_lora, "PASSES", passes)
    check(trio, repaired(trio, tmp_path / "out"), tolerance)


def test_room_for_moments_saves_passes(trio, tmp_path, monkeypatch):
    passes, sums = [], sa_lora.Lab.sums
    monkeypatch.setattr(sa_lora.Lab, "sums", lambda *args, **more: passes.append(1) or sums(*args, **more))
    repaired(trio, tmp_path / "one")
    assert len(passes) == 1
    monkeypatch.setattr(sa_lora, "HELD", 0)
    repaired(trio, tmp_path / "two")
    assert len(passes) == 1 + 4


def test_more_directions_than_outputs_leave_nothing(trio, tmp_path):
    repair(trio.adapter, SaLoRA(rank=1000), aligned=trio.aligned, alignment=ROWS, out=tmp_path / "out")
    assert all(b.abs().max() < 1e-6 for _, b in factors(tmp_path / "out").values())


def test_bad_parameters():
    with pytest.raises(ConfigError, match="`rank` of SaLoRA must be an integer >= 0"):
        SaLoRA(rank=-1)
