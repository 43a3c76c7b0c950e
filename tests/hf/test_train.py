# SPDX-License-Identifier: Apache-2.0
"""`fine_tune`, its trainer's loss, and adapters loaded to answer."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import Trainer

from moored.data.schema import Row
from moored.data.tiny import tiny_model, tiny_rows, tiny_tokenizer
from moored.defenses.lisa import Lisa
from moored.defenses.pharmacist import Pharmacist
from moored.errors import ConfigError
from moored.hf.loaders import load_model, load_tokenizer
from moored.hf.train import AnswerTrainer, Training, fine_tune
from moored.progress import Pause

ROWS = tiny_rows(16)
SAFE = tiny_rows(8, source="alignment")
TRAINING = Training(steps=4, batch=4, lr=1e-2, dtype="float32")


def adapter_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_logits_at_answers_alone_train_the_same_weights(tmp_path, monkeypatch):
    fine_tune("tiny", ROWS, tmp_path / "sparing", training=TRAINING)
    monkeypatch.setattr(AnswerTrainer, "compute_loss", Trainer.compute_loss)
    fine_tune("tiny", ROWS, tmp_path / "plain", training=TRAINING)
    sparing, plain = adapter_weights(tmp_path / "sparing"), adapter_weights(tmp_path / "plain")
    assert sparing.keys() == plain.keys()
    for name, weight in plain.items():
        torch.testing.assert_close(sparing[name], weight, rtol=1e-4, atol=1e-5)


def test_a_choice_among_the_rows_keeps_every_category(tmp_path):
    rows = [
        Row.of(f"{row.question} {kind}", row.answer, source="alignment", category=kind)
        for kind in ("theft", "benign")
        for row in tiny_rows(8, source="alignment")
    ]
    chosen, roles = Pharmacist(fraction=0.5), {"alignment": SAFE}
    report = fine_tune("tiny", rows, tmp_path / "a", training=TRAINING, defenses=[chosen], roles=roles)
    assert report.fired["pharmacist"]["resolved"]["categories"] == 2
    assert (report.fired["pharmacist"]["resolved"]["kept"], report.steps) == (8, TRAINING.steps)


def test_a_merge_is_the_adapter_on_fp32_weights(tmp_path):
    fine_tune("tiny", ROWS, tmp_path / "adapter", training=TRAINING)
    fine_tune("tiny", ROWS, tmp_path / "merged", training=TRAINING, merge=True)
    ids = load_tokenizer("tiny")("a lamp at home", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        beside = PeftModel.from_pretrained(load_model("tiny"), str(tmp_path / "adapter")).eval()(ids).logits
        merged = load_model(tmp_path / "merged")(ids).logits
        loaded = load_model("tiny", adapter=tmp_path / "adapter")(ids).logits
        untouched = load_model("tiny")(ids).logits
    torch.testing.assert_close(merged, beside, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loaded, beside, rtol=1e-4, atol=1e-5)
    assert (beside - untouched).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("arch", "layers"),
    [
        ("llama", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("gpt2", {"c_attn", "c_proj"}),
        ("phi3", {"qkv_proj", "o_proj"}),
    ],
)
def test_adapters_on_attention_alone(arch, layers, tmp_path):
    tiny_model(arch).save_pretrained(tmp_path / arch)
    tiny_tokenizer().save_pretrained(tmp_path / arch)
    fine_tune(tmp_path / arch, ROWS, tmp_path / "out", training=replace(TRAINING, targets="attention"))
    adapted = {name.partition(".lora_")[0] for name in adapter_weights(tmp_path / "out")}
    assert {name.rpartition(".")[2] for name in adapted} == layers
    assert {name.split(".")[-2] for name in adapted} == {"attn" if arch == "gpt2" else "self_attn"}


def test_a_target_that_no_module_has_is_named(tmp_path):
    with pytest.raises(ConfigError, match="unknown LoRA target 'q_prj'; did you mean 'q_proj'"):
        fine_tune("tiny", ROWS, tmp_path / "out", training=replace(TRAINING, targets=("q_prj",)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kept", [2, "the last"])
def test_a_killed_run_ends_as_if_it_had_not_been(kept, tmp_path):
    """Killed after a checkpoint in the middle, and after the last one, when only the saving was left."""
    training = replace(TRAINING, save_every=2)
    defended = {"training": training, "defenses": (Lisa(rho=1.0, align_steps=1, user_steps=1),)}
    defended |= {"roles": {"alignment": SAFE}}
    whole = fine_tune("tiny", ROWS, tmp_path / "whole", **defended)
    killed, step = tmp_path / "killed", whole.steps if kept == "the last" else kept
    with suppress(Killed):
        fine_tune("tiny", ROWS, killed, progress=killer(step), **defended)
    (killed / "adapter_model.safetensors").unlink(missing_ok=True)
    assert [path.name for path in killed.glob("checkpoint-*")] == [f"checkpoint-{step}"]

    resumed = fine_tune("tiny", ROWS, killed, **defended)
    assert resumed.steps == whole.steps
    assert resumed.fired["lisa"]["count"] == whole.fired["lisa"]["count"]
    for name, weight in adapter_weights(tmp_path / "whole").items():
        assert torch.equal(adapter_weights(killed)[name], weight)


class Killed(Exception):
    """Ends a run."""


def killer(step: int):
    """Ends a run in the step behind `step`, whose checkpoint is then written."""

    def progress(done: int, total: int, what: str) -> None:
        if done > step:
            raise Killed

    return progress


def test_progress_names_a_loss_once_there_is_one(tmp_path):
    said = []
    fine_tune(
        "tiny",
        ROWS,
        tmp_path / "a",
        training=replace(TRAINING, steps=7),
        progress=lambda done, total, what: said.append((done, total, what)),
    )
    steps = [(done, what) for done, total, what in said if total == 7]
    assert [done for done, _ in steps] == [1, 2, 3, 4, 5, 6, 7]
    assert steps[0][1] == ""
    assert all(what.startswith("loss ") for done, what in steps if done > 5)
    assert "nan" not in str(steps)


@pytest.mark.parametrize("at", [1, 5, 6])
def test_a_pause_goes_on_to_the_same_weights(at, tmp_path):
    training, told = replace(TRAINING, steps=7), []

    def progress(done, total, said):
        told.append((done, total, dict(said.numbers)))
        if done == at:
            raise Pause

    how = {"training": training, "defenses": [Lisa(rho=1.0)], "roles": {"alignment": SAFE}}
    fine_tune("tiny", ROWS, tmp_path / "straight", **how)
    with pytest.raises(Pause):
        fine_tune("tiny", ROWS, tmp_path / "paused", **how, progress=progress)
    assert told[-1][0] == at  # not one step more
    assert [path.name for path in (tmp_path / "paused").glob("checkpoint-*")] == [f"checkpoint-{at}"]
    fine_tune("tiny", ROWS, tmp_path / "paused", **how, progress=lambda *a: told.append((a[0], a[1], a[2].numbers)))
    straight, paused = adapter_weights(tmp_path / "straight"), adapter_weights(tmp_path / "paused")
    assert all(torch.equal(paused[name], weight) for name, weight in straight.items())
    assert told[-1][0] == told[-1][1]


def test_a_pause_at_the_last_step_is_too_late(tmp_path):
    def progress(done, total, said):
        if done == total:
            raise Pause

    assert fine_tune("tiny", ROWS, tmp_path / "out", training=TRAINING, progress=progress).steps == 4


def test_progress_carries_the_numbers_behind_its_words(tmp_path):
    told = []
    training = replace(TRAINING, steps=6, save_every=3)
    fine_tune("tiny", ROWS, tmp_path / "out", training=training, progress=lambda *a: told.append(a[2]))
    assert [said.numbers["saved"] for said in told if "saved" in said.numbers] == [3, 6]
    logged = next(said for said in told if said)
    assert logged.startswith(f"loss {logged.numbers['loss']:.3f}")
    assert (logged.numbers["step"], logged.numbers["learning_rate"]) == (5, 1e-2)
