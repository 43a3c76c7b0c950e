# SPDX-License-Identifier: Apache-2.0
"""What a model must be served with: applied once, kept beside the weights, carried through training and repair."""

import stat
from dataclasses import replace

import pytest
import torch

import moored.hf.generate
from contract.trainers import plain, sft
from moored.attacks.harmful_mix import HarmfulMix
from moored.data.tiny import tiny_model, tiny_rows, tiny_tokenizer
from moored.defenses.bea import BEA
from moored.defenses.ptst import PTST, SAFETY_PROMPT
from moored.errors import CheckpointError, ConfigError, NotYetSupported
from moored.hf.loaders import load_model, load_serving, load_tokenizer, resolve_model
from moored.hf.train import Training, fine_tune
from moored.protect import protect, release
from moored.repairs.baselines import ScaleAdapter
from moored.repairs.engine import repair
from moored.serving import SERVING_JSON, Serving
from moored.study.stages import AttackStage, FinetuneStage, RepairStage, Source, load, spelt
from moored.tasks.evaluate import evaluate
from moored.tasks.harmful_requests import HarmfulRequests

USER = {"role": "user", "content": "Hi"}
ROWS, SAFE = tiny_rows(8), tiny_rows(6, "alignment")
TRAINING = Training(steps=2, batch=4, dtype="float32")
DEFENSE = BEA(k=3, trigger_tokens=12, seed=0)  # a drawn one now and then has the toy model answer nothing
HALF = ScaleAdapter(scale=0.5)
TRIGGER = DEFENSE.serving().system


def bea(out, start="tiny", **options):
    return fine_tune(start, ROWS, out, training=TRAINING, defenses=[DEFENSE], roles={"alignment": SAFE}, **options)


@pytest.fixture
def asked(monkeypatch):
    """The prompts that models are given, as text."""
    seen, ended = [], moored.hf.generate._ended

    def recording(model, prompts, *rest):
        seen.extend(tiny_tokenizer().decode(ids) for ids in prompts)
        return ended(model, prompts, *rest)

    monkeypatch.setattr(moored.hf.generate, "_ended", recording)
    return seen


def test_a_request_gets_the_text_once_before_its_own_system_turn():
    serving = Serving(system="Be kind.")
    assert serving.apply([USER]) == [{"role": "system", "content": "Be kind."}, USER]
    own = [{"role": "system", "content": "Be brief."}, USER]
    served = serving.apply(own)
    assert served == [{"role": "system", "content": "Be kind. Be brief."}, USER]
    assert serving.apply(served) == served
    assert own[0]["content"] == "Be brief."
    assert serving.before(None) == serving.before(serving) == serving
    assert serving.before(Serving(system="Be brief.")).system == "Be kind. Be brief."


@pytest.mark.parametrize("text", ["", " a", "a\n"])
def test_no_text_is_no_serving(text):
    with pytest.raises(ConfigError, match="`system` of Serving"):
        Serving(system=text)


def test_the_file_is_its_owners_alone_and_comes_back(tmp_path):
    (tmp_path / SERVING_JSON).write_text("old")
    (tmp_path / SERVING_JSON).chmod(0o666)
    serving = Serving(system='Be "kïnd".')
    path = serving.save(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Serving.load(tmp_path) == load_serving(tmp_path) == serving
    assert "kïnd" not in repr(serving)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"system": null}', '{"system": ""}', '{"sesame": "open"}'])
def test_a_broken_file_is_refused_without_showing_it(text, tmp_path):
    (tmp_path / SERVING_JSON).write_text(text)
    with pytest.raises(CheckpointError, match="is not a serving file") as caught:
        load_serving(tmp_path)
    assert "sesame" not in str(caught.value)


def test_a_model_without_the_file_is_served_plainly(tmp_path):
    assert load_serving("tiny") is None
    assert load_serving("nobody/nothing") is None
    assert load_serving("tiny", adapter=tmp_path) is None


@pytest.mark.parametrize("kind", ["adapter", "merged", "full", "repaired"])
def test_the_model_reads_the_trigger_exactly_once(kind, tmp_path, asked):
    out = tmp_path / "out"
    if kind == "full":
        fine_tune(
            "tiny",
            ROWS,
            out,
            training=replace(TRAINING, full=True),
            defenses=[DEFENSE],
            roles={"alignment": SAFE},
        )
    else:
        bea(out, merge=kind == "merged")
    if kind == "repaired":
        out = tmp_path / "repaired"
        repair(tmp_path / "out", HALF, aligned=resolve_model("tiny"), out=out)
        assert stat.S_IMODE((out / SERVING_JSON).stat().st_mode) == 0o600
    adapter = out if kind in ("adapter", "repaired") else None
    where = "tiny" if adapter else out
    model, tokenizer, serving = load_model(where, adapter=adapter), load_tokenizer(where), None
    serving = load_serving(where, adapter=adapter)
    task = HarmfulRequests(n=5, max_new_tokens=2)
    with_it = evaluate(model, tokenizer, [task], serving=serving)
    assert [prompt.count(TRIGGER) for prompt in asked] == [1] * 5
    assert all(prompt.startswith(f"<|im_start|>system\n{TRIGGER}<|im_end|>") for prompt in asked)
    asked.clear()
    without = evaluate(model, tokenizer, [task])
    assert [prompt.count(TRIGGER) for prompt in asked] == [0] * 5
    assert [e.prompt for e in with_it[0].exchanges] == [e.prompt for e in without[0].exchanges]
    assert TRIGGER not in repr(with_it)


def test_fine_tuning_on_keeps_what_the_start_was_served_with(tmp_path):
    bea(tmp_path / "first", merge=True)
    fine_tune(tmp_path / "first", ROWS, tmp_path / "plain", training=TRAINING)
    fine_tune(tmp_path / "first", ROWS, tmp_path / "ptst", training=TRAINING, defenses=[PTST()])
    assert Serving.load(tmp_path / "plain").system == TRIGGER
    assert Serving.load(tmp_path / "ptst").system == f"{SAFETY_PROMPT} {TRIGGER}"


def test_an_undefended_result_has_no_file(tmp_path):
    fine_tune("tiny", ROWS, tmp_path / "out", training=TRAINING)
    assert not (tmp_path / "out" / SERVING_JSON).exists()


def test_studies_and_audits_serve(tmp_path, asked):
    from typer.testing import CliRunner

    from moored.cli import app

    bea(tmp_path / "tuned/model")
    source = Source(where="tiny", resolved=resolve_model("tiny"), identity="")
    upload = AttackStage(method=HarmfulMix(), benign=(), harmful=())
    tuned = FinetuneStage(start=source, upload=upload, training=TRAINING)
    repaired = RepairStage(tuned=tuned, method=HALF)
    (tmp_path / "repaired").mkdir()
    repair(tmp_path / "tuned/model", repaired.method, aligned=source.resolved, out=tmp_path / "repaired/model")
    folders = {id(tuned): tmp_path / "tuned", id(repaired): tmp_path / "repaired"}
    assert load(source, lambda stage: folders[id(stage)]).serving is None
    for stage in (tuned, repaired):
        assert load(stage, lambda stage: folders[id(stage)]).serving.system == TRIGGER
    options = ["--base", "tiny", "--tasks", "harmful_requests", "--n", "3"]
    done = CliRunner().invoke(app, ["audit", str(tmp_path / "tuned/model"), *options])
    assert done.exit_code == 0, done.output
    assert sorted(prompt.count(TRIGGER) for prompt in asked) == [0, 0, 0, 1, 1, 1]
    assert TRIGGER not in done.output


def test_save_model_and_checkpoints_carry_it(tmp_path):
    trainer = protect(sft(tmp_path, lora=True, save_strategy="steps", save_steps=3), DEFENSE, alignment=SAFE)
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    assert trainer.moored_serving == Serving(system=TRIGGER)
    assert Serving.load(tmp_path / "saved") == Serving.load(tmp_path / "checkpoint-3") == trainer.moored_serving
    release(trainer)
    assert trainer.moored_serving == Serving(system=TRIGGER)


def test_two_ways_to_serve_are_refused(tmp_path):
    with pytest.raises(NotYetSupported, match="BEA and PTST both say what every request must begin with"):
        protect(plain(tmp_path), DEFENSE, PTST(), alignment=SAFE)


def test_secrets_are_not_spelt():
    assert spelt(BEA(k=3, trigger_tokens=12)) == "BEA(k=3, trigger_tokens=12)"


def test_generation_with_a_real_model_changes(asked):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    with torch.no_grad():
        moored.hf.generate.generate(model, tokenizer, [[USER]], max_new_tokens=1, serving=Serving(system="Be kind."))
    assert asked == ["<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"]
