# SPDX-License-Identifier: Apache-2.0
"""Running studies: nothing twice, nothing lost, and a record that says what happened."""

from __future__ import annotations

import errno
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from moored.errors import StudyError
from moored.report.headline import alarms
from moored.report.record import Record
from moored.study.patch import merge
from moored.study.recipe import Recipe
from moored.study.store import Store
from moored.study.study import Event, Study

WHOLE = Counter(answer=10, train=3, repair=1)
"""What the small recipe takes: align once, fine-tune twice, repair once, ask five models two tasks each."""


def run(tree: dict[str, Any], store: Store, watch: Any = None) -> Record:
    study = Study(Recipe.parse(tree))
    return study.run(store, watch) if watch else study.run(store)


def test_a_study_runs_every_stage_once(tree: dict[str, Any], store: Store, work: Any) -> None:
    record = run(tree, store)
    assert Counter(work.done) == WHOLE
    assert [arm.name for arm in record.arms] == ["shipped", "aligned", "plain", "lisa", "repaired"]
    assert not any(stage.cached for stage in record.stages)
    assert Record.read(record.plain()).plain() == record.plain()


def test_a_second_run_does_nothing_and_says_the_same(tree: dict[str, Any], store: Store, work: Any) -> None:
    first = run(tree, store)
    work.done.clear()
    second = run(tree, store)
    assert work.done == []
    assert all(stage.cached for stage in second.stages)
    assert [arm.seconds for arm in second.arms] == [arm.seconds for arm in first.arms]
    assert second.plain()["arms"] == first.plain()["arms"]


@pytest.mark.parametrize(
    ("change", "todo"),
    [
        ({"tasks": {"utility": {"n": 5}}}, Counter(answer=5)),
        ({"tasks": {"over_refusal": {"n": 4}}}, Counter(answer=5)),
        ({"arms": {"repaired": {"repairs": [{"safe_lora": {"fraction": 0.9}}]}}}, Counter(repair=1, answer=2)),
        ({"arms": {"lisa": {"finetune": {"training": {"lr": 1e-3}}}}}, Counter(train=1, answer=2)),
        ({"finetune": {"training": {"lr": 1e-3}}}, Counter(train=2, repair=1, answer=6)),
        ({"align": {"training": {"lr": 1e-3}}}, Counter(train=3, repair=1, answer=8)),
        ({"title": "Another"}, Counter()),
    ],
)
def test_a_change_runs_what_depends_on_it(
    tree: dict[str, Any], store: Store, work: Any, change: dict[str, Any], todo: Counter[str]
) -> None:
    run(tree, store)
    work.done.clear()
    run(merge(tree, change), store)
    assert Counter(work.done) == todo


@pytest.mark.parametrize("stop", [0, 3, 5, 9, 13])
def test_a_stopped_study_goes_on(tree: dict[str, Any], store: Store, work: Any, stop: int) -> None:
    work.fail_at = stop
    with pytest.raises(KeyboardInterrupt):
        run(tree, store)
    work.fail_at = None
    record = run(tree, store)
    assert Counter(work.done) == WHOLE
    assert sum(stage.cached for stage in record.stages) >= stop


def test_a_stopped_evaluation_asks_only_what_is_missing(
    tree: dict[str, Any], store: Store, work: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def stopping(model: Any, tokenizer: Any, prompts: Any, *, found: Any, **_: Any) -> list[str]:
        found(2, "I can't help with that.")
        found(0, "Sure, here it is.")
        raise KeyboardInterrupt

    def whole(model: Any, tokenizer: Any, prompts: Any, **_: Any) -> list[str]:
        asked.append(len(prompts))
        return ["I can't help with that." for _ in prompts]

    monkeypatch.setattr("moored.hf.generate.generate", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(tree, store)
    monkeypatch.setattr("moored.hf.generate.generate", whole)
    record = run(tree, store)
    assert asked[0] == 2
    assert set(asked[1:]) == {4}
    assert record.arm("shipped").metrics["harmful_requests"].value == 25.0
    assert not list(store.root.rglob("answers.jsonl"))


def test_resumed_training_is_said(tree: dict[str, Any], store: Store, work: Any) -> None:
    work.fail_at = 2  # the alignment, after the model as shipped has answered both tasks
    with pytest.raises(KeyboardInterrupt):
        run(tree, store)
    work.fail_at = None
    assert any("was stopped and resumed" in warning for warning in run(tree, store).warnings)


def test_arms_cost_what_their_chain_cost(tree: dict[str, Any], store: Store, work: Any) -> None:
    record = run(tree, store)
    seconds = {stage.key: stage.seconds for stage in record.stages}
    for arm in record.arms:
        assert arm.seconds == pytest.approx(sum(seconds[key] for key in arm.stages))
    chains = {arm.name: len(arm.chain) for arm in record.arms}
    assert chains == {"shipped": 0, "aligned": 1, "plain": 3, "lisa": 3, "repaired": 4}
    assert math.isnan(record.arm("shipped").passes_per_step)


def test_the_record_holds_what_was_measured(tree: dict[str, Any], store: Store, work: Any) -> None:
    record = run(tree, store)
    plain, repaired = record.arm("plain"), record.arm("repaired")
    assert record.task("safety") is not None
    assert plain.metrics["harmful_requests"].value == 0.0
    assert plain.metrics["harmful_requests"].n == 4
    assert plain.attack is not None
    assert (plain.attack.rows, plain.attack.harmful) == (20, 4)
    assert plain.undefended
    assert repaired.methods == ["SafeLoRA"]
    assert not repaired.baseline
    assert repaired.repairs[0].changed == 1
    assert repaired.layers[0].cosine == 0.5
    assert record.arm("lisa").methods == ["Lisa"]
    prompts = {tuple(example.prompt for example in arm.examples) for arm in record.arms}
    assert len(prompts) == 1
    assert len(prompts.pop()) == 2
    assert all(example.refused for arm in record.arms for example in arm.examples)
    assert list(plain.scores["harmful_requests"].values()) == [0.0] * 4
    assert set(plain.scores["harmful_requests"]) == set(repaired.scores["harmful_requests"])
    asked = {each.name: each for each in record.prompts}
    assert asked["task harmful_requests"].prompts == 4
    assert asked["attack"].prompts == 20
    assert not any(each.shared for each in record.prompts if each.name.startswith("task "))
    assert all(each["name"] for each in record.data)
    assert record.versions["moored"]
    assert record.machine.cores >= 1


def test_expectations_stand_at_every_point(tree: dict[str, Any], store: Store, work: Any) -> None:
    tree["grid"] = {"attack.harmful_mix.ratio": [0.1, 0.5]}
    tree["expect"] = [
        {"arm": "aligned", "task": "harmful_requests", "op": "<=", "bound": 10},
        {"arm": "lisa", "task": "utility", "against": "plain", "op": ">=", "bound": -10},
        {"arm": "lisa", "task": "utility", "against": "aligned", "op": ">=", "bound": 15},
    ]
    record = run(tree, store)
    assert [(promise.arm, promise.against) for promise in record.expectations] == [
        ("aligned", None),
        ("lisa@ratio=0.1", "plain@ratio=0.1"),
        ("lisa@ratio=0.5", "plain@ratio=0.5"),
        ("lisa@ratio=0.1", "aligned"),
        ("lisa@ratio=0.5", "aligned"),
    ]
    assert [record.met(promise) for promise in record.expectations] == [True, True, True, False, False]
    assert record.arm("plain@ratio=0.5").ratio == 0.5
    assert record.arm("plain@ratio=0.5").title == "Undefended"


def test_an_expectation_of_an_unknown_arm_is_refused_before_any_work(
    tree: dict[str, Any], store: Store, work: Any
) -> None:
    tree["expect"] = [{"arm": "lsa", "task": "utility", "op": ">=", "bound": 1}]
    with pytest.raises(Exception, match="unknown arm in `expect` 'lsa'; did you mean 'lisa'"):
        run(tree, store)
    assert work.done == []


def test_gibberish_is_not_measured_and_never_a_default(tree: dict[str, Any], store: Store, work: Any) -> None:
    work.answer = lambda prompt: ""
    record = run(tree, store)
    share = record.arm("plain").metrics["harmful_requests"]
    assert math.isnan(share.value)
    assert (share.n, share.unjudged) == (0, 4)
    assert any("could not be judged" in warning for warning in alarms(record))


def test_a_full_disk_is_one_sentence_and_loses_nothing(
    tree: dict[str, Any], store: Store, work: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = __import__("moored.repairs.engine", fromlist=["repair"]).repair

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("moored.repairs.engine.repair", full)
    with pytest.raises(StudyError, match="no space left for the store"):
        run(tree, store)
    done = len(work.done)
    monkeypatch.setattr("moored.repairs.engine.repair", real)
    run(tree, store)
    assert Counter(work.done) == WHOLE
    assert done < len(work.done)


def test_a_disk_that_is_too_small_is_found_out_first(
    tree: dict[str, Any], store: Store, work: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"x" * 1000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 999})())
    with pytest.raises(StudyError, match="free some space"):
        run({**tree, "model": str(tmp_path / "model")}, store)
    assert work.done == []


def test_events_tell_the_story(tree: dict[str, Any], store: Store, work: Any) -> None:
    events: list[Event] = []
    run(tree, store, events.append)
    assert {event.count for event in events} == {15}
    finished = [event for event in events if event.state == "finished"]
    assert [event.index for event in finished] == list(range(1, 16))
    assert finished[0].row == "Model as shipped"
    assert any(event.state == "working" and event.what == "loss 1.0" for event in events)
    events.clear()
    run(tree, store, events.append)
    assert {event.state for event in events} == {"reused"}


def test_a_damaged_report_says_what_to_delete(tree: dict[str, Any], store: Store, work: Any) -> None:
    record = run(tree, store)
    key = next(stage.key for stage in record.stages if stage.kind == "finetune")
    (store.root / "artifacts" / f"finetune-{key[:16]}" / "report.json").write_text("{")
    with pytest.raises(StudyError, match="is damaged"):
        run(tree, store)


def test_half_written_checkpoints_are_dropped(tmp_path: Path) -> None:
    from moored.study.stages import _drop_half_written

    for name, state in (("checkpoint-1", '{"global_step": 1}'), ("checkpoint-2", '{"glob'), ("checkpoint-3", None)):
        (tmp_path / name).mkdir()
        if state is not None:
            (tmp_path / name / "trainer_state.json").write_text(state)
    _drop_half_written(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
