# SPDX-License-Identifier: Apache-2.0
"""The token accuracy in the trainer's log is that of its own rows, however they are batched, and costs no weights."""

import pytest
import torch

from moored.data.chat import IGNORED, encode
from moored.data.tiny import tiny_rows
from moored.defenses.lisa import Lisa
from moored.hf.foreseen import Foreseen
from moored.hf.loaders import load_model, load_tokenizer
from moored.hf.train import Training, fine_tune


@torch.no_grad()
def foreseen(model, rows):
    """Row by row, by a forward pass of our own."""
    tokenizer, loaded = load_tokenizer(model), load_model(model, dtype="float32").eval()
    right, given = 0, 0
    for row in rows:
        ids = encode(tokenizer, row, max_length=64)
        best = loaded(input_ids=torch.tensor([ids["input_ids"]])).logits[0, :-1].argmax(-1)
        for token, label in zip(best.tolist(), ids["labels"][1:], strict=True):
            right, given = right + (label == token), given + (label != IGNORED)
    return right / given


def started(tmp_path, model):
    """A model that foresees some of its answers and not others."""
    rows = tiny_rows(16)
    training = Training(steps=6, batch=8, lr=1e-2, full=True, dtype="float32", max_length=64)
    fine_tune(model, rows, tmp_path / "start", training=training)
    assert 0 < foreseen(str(tmp_path / "start"), rows) < 1
    return str(tmp_path / "start"), rows


@pytest.mark.parametrize("model", ["tiny", "tiny:gpt2"])
@pytest.mark.parametrize("how", [{}, {"batch": 4, "accumulate": 4}, {"pack": False}, {"batch": 16}])
def test_it_is_that_of_the_rows(tmp_path, model, how):
    start, rows = started(tmp_path, model)
    still = Training(**{"steps": 10, "batch": 8, "lr": 1e-12, "dtype": "float32", "max_length": 64, **how})
    log = fine_tune(start, rows, tmp_path / "out", training=still).log
    whole = [line["mean_token_accuracy"] for line in log if "loss" in line]
    expected = foreseen(start, rows)
    # Each line is over five steps; with eight rows in a step that is no whole number of passes.
    if still.batch * still.accumulate == 16:
        assert whole == pytest.approx([expected] * 2)
    assert sum(whole) / 2 == pytest.approx(expected, abs=0.02)


def test_the_rows_of_a_defence_count_like_their_loss(tmp_path):
    training = Training(steps=5, batch=4, lr=1e-3, dtype="float32", max_length=64)
    roles = {"alignment": tiny_rows(8, "alignment")}
    report = fine_tune("tiny", tiny_rows(16), tmp_path, training=training, defenses=[Lisa(rho=1.0)], roles=roles)
    assert all(0 <= line["mean_token_accuracy"] <= 1 for line in report.log if "loss" in line)


def test_of_two_passes_over_a_micro_batch_the_last_one_counts():
    counted = Foreseen()
    logits, targets = torch.eye(3)[None], torch.tensor([[0, IGNORED, 1]])
    counted.look(-logits, targets)
    counted.look(logits, targets)
    counted.on_substep_end()
    counted.look(logits, torch.tensor([[0, 1, 2]]))
    counted.on_step_end()
    assert counted.take() == pytest.approx(4 / 5)
    assert counted.take() is None
