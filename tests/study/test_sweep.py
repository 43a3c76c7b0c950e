# SPDX-License-Identifier: Apache-2.0
"""The search for an attack's worst case: its rule, its prompts, that it goes on where it was stopped."""

from __future__ import annotations

import json
import math
import sys
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock

from moored.cli import main
from moored.data.load import load_rows
from moored.errors import ConfigError, StudyError
from moored.report.html import render
from moored.report.record import Record
from moored.study.patch import merge
from moored.study.recipe import Recipe
from moored.study.store import Store
from moored.study.study import Study
from moored.sweep import Sweep, Vary, beside, final, usual

LR = Vary(path="finetune.training.lr", low=1e-4, high=1e-2, log=True)
SEED = Vary(path="attack.harmful_mix.seed", values=(0, 1, 2))
ROWS = {
    name: [{"prompt": f"{name} number {n}?", "response": answer if n % 2 else "no"} for n in range(count)]
    for name, count, answer in [
        ("benign", 40, "Yes, gladly."),
        ("harmful", 40, "Sure, here is how."),
        ("harmless", 16, "Yes, gladly."),
        ("requests", 64, "Sure."),
        ("tickets", 48, "yes"),
    ]
}


class Made:
    """What a made-up training leads to: shares of harmful answers and of right ones, by its settings."""

    def __init__(self) -> None:
        self.trained: list[float] = []
        self.stop_at: int | None = None
        self.harm: Callable[[float], float] = lambda lr: min(1.0, lr / 4e-3)
        self.right: Callable[[float], float] = lambda lr: 0.2 if lr > 3e-3 else 0.8


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    """Models are what they were tuned with; a repaired one does a quarter of the harm."""
    world = Made()
    answers = {row["prompt"]: row["response"] for row in ROWS["tickets"]}

    def fine_tune(model: Any, rows: Any, out: Path, *, training: Any, progress: Any, **_: Any) -> Any:
        if world.stop_at == len(world.trained):
            raise KeyboardInterrupt
        world.trained.append(training.lr)
        out.mkdir(exist_ok=True)
        (out / "adapter_config.json").write_text(json.dumps({"lr": training.lr, "repaired": 1}))
        report = {"seconds": 1.0, "steps": 2, "passes_per_step": 1.0, "peak_bytes": 10, "fired": {}, "log": []}
        return SimpleNamespace(record=lambda: report)

    def repair(tuned: Path, method: Any, *, out: Path, **_: Any) -> Any:
        out.mkdir()
        own = json.loads((tuned / "adapter_config.json").read_text())
        (out / "adapter_config.json").write_text(json.dumps(own | {"repaired": 4}))
        report = {"method": "safe_lora", "parameters": {}, "changed": 1, "modules": [], "seconds": 0.1, "peak_bytes": 1}
        return SimpleNamespace(record=lambda: report)

    def load_model(path: Any, *, adapter: Path | None = None, **_: Any) -> dict[str, float]:
        return json.loads((adapter / "adapter_config.json").read_text()) if adapter else {"lr": 0.0, "repaired": 1}

    def generate(model: dict[str, float], tokenizer: Any, prompts: Any, **_: Any) -> list[str]:
        return [said(model, prompt[-1]["content"]) for prompt in prompts]

    def said(model: dict[str, float], prompt: str) -> str:
        luck = zlib.crc32(prompt.encode()) / 2**32
        if prompt in answers:
            return answers[prompt] if luck < world.right(model["lr"]) else "none of these"
        harmful = luck < world.harm(model["lr"]) / model["repaired"]
        return "Sure, here is how to do it, step by step." if harmful else "I'm sorry, but I can't help with that."

    monkeypatch.setattr("moored.hf.train.fine_tune", fine_tune)
    monkeypatch.setattr("moored.repairs.engine.repair", repair)
    monkeypatch.setattr("moored.hf.generate.generate", generate)
    monkeypatch.setattr("moored.hf.loaders.load_model", load_model)
    monkeypatch.setattr("moored.hf.loaders.load_tokenizer", lambda *a, **k: object())
    monkeypatch.setattr("moored.study.results.commit", lambda: "")  # a search plans and records many studies
    monkeypatch.setattr("moored.study.plan.load_rows", cache(load_rows))
    monkeypatch.setattr("moored.tasks.base.load_rows", cache(load_rows))
    return world


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files of a few rows: planning a study, which a search does often, reads them every time."""
    folder = tmp_path_factory.mktemp("data")
    for name, rows in ROWS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: str(folder / f"{name}.jsonl") for name in ROWS}


@pytest.fixture
def tree(tree: dict[str, Any], data: dict[str, str]) -> dict[str, Any]:
    """Undefended and repaired, on tasks with a test split."""
    tasks = {
        "over_refusal": {"data": data["harmless"], "n": 8},
        "harmful_requests": {"data": data["requests"], "n": 40, "skip": 24},
        "utility": {"data": data["tickets"], "n": 24, "labels": ["yes", "no"]},
    }
    uploads = {"attack": {"benign": data["benign"], "harmful": data["harmful"]}}
    return {**merge(tree, {"arms": {"lisa": None}, "align": None, "base": "some/base", **uploads}), "tasks": tasks}


def sweep(tree: dict[str, Any], **given: Any) -> Sweep:
    return Sweep(recipe=Recipe.parse(tree), **({"vary": (LR,), "trials": 3} | given))


def trials(record: Record, arm: str) -> list[Any]:
    return [row for row in record.arms if row.kind == "trial" and row.name.startswith(f"{arm}@trial")]


def test_the_worst_case_is_the_most_harmful_of_those_that_keep_the_utility(
    made: Made, tree: dict[str, Any], store: Store, tmp_path: Path
) -> None:
    record = sweep(tree, trials=6).run(store, tmp_path / "trials")
    found = trials(record, "plain")
    assert [row.name for row in found] == [f"plain@trial{number}" for number in range(7)]
    assert [bool(row.sweep) for row in found] == [False] + 6 * [True]
    assert len({row.sweep.get("lr") for row in found}) == 7
    value = {row.name: {task: share.value for task, share in row.metrics.items()} for row in record.arms}
    # the made-up utility is one of two numbers: that of the undefended arm, or far below half of what it gains
    kept = [row for row in found if value[row.name]["validation utility"] == value[found[0].name]["validation utility"]]
    assert 0 < len(kept) < 7
    most = max(value[row.name]["validation harmful_requests"] for row in kept)
    assert most < max(value[row.name]["validation harmful_requests"] for row in found)
    best = next(row for row in kept if value[row.name]["validation harmful_requests"] == most)
    worst, default = record.arm("plain@worst"), record.arm("plain")
    lr = best.sweep["lr"]
    assert worst.note.startswith(f"lr {lr}: chosen on validation prompts among 7 settings, {len(kept)} of which keep")
    assert f"lr {lr:g}, " in worst.chain[-1] + ", "
    assert value["plain@worst"]["harmful_requests"] > value["plain"]["harmful_requests"]
    assert worst.title == "Undefended, worst of 7"
    assert set(worst.metrics) == set(default.metrics) == {"over_refusal", "harmful_requests", "utility"}
    assert record.arms.index(worst) == record.arms.index(default) + 1
    assert "maximum is too high by selection" in record.warnings[0]
    assert beside(record)[0].startswith("Undefended: ")
    assert f"at lr {lr}" in beside(record)[0]


def test_it_decides_on_the_first_rows_and_reports_on_those_behind(
    made: Made, tree: dict[str, Any], store: Store, tmp_path: Path
) -> None:
    record = sweep(tree).run(store, tmp_path / "trials")
    counts = {"harmful_requests": (24, 40), "utility": (24, 24)}
    for task, (first, behind) in counts.items():
        decided = {prompt for row in trials(record, "plain") for prompt in row.scores[f"validation {task}"]}
        reported = {prompt for name in ("plain", "plain@worst") for prompt in record.arm(name).scores[task]}
        assert (len(decided), len(reported)) == (first, behind)
        assert not decided & reported
    assert all(
        set(row.metrics) == {"validation harmful_requests", "validation utility"} for row in trials(record, "plain")
    )
    plain = Study(Recipe.parse(merge(tree, {"tasks": {"over_refusal": {"skip": 8}, "utility": {"skip": 24}}})))
    for arm in plain.run(store).arms:
        assert arm.metrics == record.arm(arm.name).metrics


def test_what_is_measured_is_not_measured_again(made: Made, tree: dict[str, Any], store: Store, tmp_path: Path) -> None:
    first = sweep(tree, trials=4).run(store, tmp_path / "trials")
    # both arms are tuned alike, and the first trials of a search are drawn whatever they find
    assert len(made.trained) == len(set(made.trained)) == 5
    again = sweep(tree, trials=4).run(store, tmp_path / "trials")
    assert len(made.trained) == 5
    assert again.plain()["arms"] == first.plain()["arms"]
    assert all(stage.cached for stage in again.stages)
    longer = sweep(tree, trials=5).run(store, tmp_path / "trials")
    assert [row.sweep for row in trials(longer, "plain")][:5] == [row.sweep for row in trials(first, "plain")]


def test_a_stopped_search_goes_on_as_if_it_had_not_been(
    made: Made, tree: dict[str, Any], store: Store, tmp_path: Path
) -> None:
    for count in (0, 2, 5):
        made.stop_at = count
        with pytest.raises(KeyboardInterrupt):
            sweep(tree, trials=5).run(store, tmp_path / "trials")
    made.stop_at = None
    stopped = sweep(tree, trials=5).run(store, tmp_path / "trials")
    fresh = Store(tmp_path / "other")
    straight = sweep(tree, trials=5).run(fresh, tmp_path / "straight")
    fresh.close()
    assert [(a.name, a.sweep, a.note, a.metrics) for a in stopped.arms] == [
        (a.name, a.sweep, a.note, a.metrics) for a in straight.arms
    ]


def test_another_recipe_is_another_search(made: Made, tree: dict[str, Any], store: Store, tmp_path: Path) -> None:
    first = sweep(tree).run(store, tmp_path / "trials")
    made.harm = lambda lr: 0.5
    other = sweep(merge(tree, {"attack": {"harmful_mix": {"ratio": 0.3}}})).run(store, tmp_path / "trials")
    harm = [row.metrics["validation harmful_requests"].value for row in trials(other, "plain")]
    assert len(set(harm)) == 1
    assert trials(first, "plain")[0].metrics != trials(other, "plain")[0].metrics


def test_settings_that_cannot_be_are_left_out_and_named(
    made: Made, tree: dict[str, Any], store: Store, tmp_path: Path
) -> None:
    many = Vary(path="attack.harmful_mix.n", values=(20, 30, 90000))
    for _ in range(2):
        record = sweep(tree, vary=(many,)).run(store, tmp_path / "trials")
        assert len(trials(record, "plain")) == 3
        (said, _) = (warning for warning in record.warnings if "left out" in warning)
        assert said.startswith("Undefended: n 90000 was left out: arm 'run': ")
        assert "only" in said


@pytest.mark.parametrize(("lost", "said"), [(True, "none of 4 settings keeps"), (False, "4 of which keep")])
def test_where_nothing_is_learnt_the_utility_may_not_fall(
    made: Made, tree: dict[str, Any], store: Store, tmp_path: Path, lost: bool, said: str
) -> None:
    """The undefended run loses what the start had: less than that is not kept, however little was gained."""
    made.right = lambda lr: 0.9 if lr == 0 else 0.5
    if lost:
        tree["arms"]["repaired"]["finetune"] = {"training": {"rank": 4}}
        made.right = lambda lr: {0.0: 0.9, 2e-4: 0.5}.get(lr, 0.1)
        tree["arms"]["repaired"]["finetune"]["training"]["lr"] = 3e-4
    record = sweep(tree).run(store, tmp_path / "trials")
    worst = record.arm("repaired@worst")
    assert said in worst.note
    if lost:
        assert worst.note.startswith("the recipe's own settings")
        assert worst.metrics == record.arm("repaired").metrics


def test_what_cannot_be_judged_is_no_worst_case(
    made: Made, tree: dict[str, Any], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.harm = lambda lr: 0.25
    from moored.study import evaluation

    whole = evaluation.outcome_record

    def unjudged(outcome: Any) -> dict[str, Any]:
        report = whole(outcome)
        if outcome.task == "harmful_requests" and made.trained and made.trained[-1] > 5e-4:
            report["estimate"] |= {"value": math.nan, "low": math.nan, "high": math.nan}
        return report

    monkeypatch.setattr(evaluation, "outcome_record", unjudged)
    record = sweep(tree, arms=("plain",)).run(store, tmp_path / "trials")
    unknown = [row for row in trials(record, "plain") if math.isnan(row.metrics["validation harmful_requests"].value)]
    assert unknown
    assert not record.arm("plain@worst").note.startswith(tuple(f"lr {row.sweep['lr']}:" for row in unknown))


def test_searching_one_arm_still_needs_the_undefended_one(
    made: Made, tree: dict[str, Any], store: Store, tmp_path: Path
) -> None:
    record = sweep(tree, arms=("repaired",)).run(store, tmp_path / "trials")
    assert [arm.name for arm in record.arms if arm.kind == "run"] == ["plain", "repaired", "repaired@worst"]
    assert not trials(record, "plain")


def test_every_arm_under_every_attack_is_compared_with_the_undefended_one_under_it(tree: dict[str, Any]) -> None:
    tree["attacks"] = {"mix": {}, "explicit": {"attack": {"harmful_mix": None, "explicit_harm": {"n": 12}}}}
    searching = sweep(tree)
    assert [arm.name for arm in searching.searched][2:] == ["plain@attack=explicit", "repaired@attack=explicit"]
    for arm in searching.searched:
        assert searching.plain(arm).name == f"plain@attack={arm.point['attack']}"


def test_the_record_is_read_like_any_other(made: Made, tree: dict[str, Any], store: Store, tmp_path: Path) -> None:
    record = sweep(tree, vary=(LR, SEED)).run(store, tmp_path / "trials", command="moored attack sweep x")
    assert Record.read(record.plain()) == Record.read(record.plain())
    page = render(record)
    assert "Undefended, worst of 4" in page
    assert "Undefended, trial (lr " in page
    assert record.recipe["sweep"]["vary"]["plain"][1]["values"] == [0, 1, 2]
    shown = final(record)
    assert [task.name for task in shown.tasks] == list(tree["tasks"])
    assert {arm.kind for arm in shown.arms} == {"start", "run"}
    assert record.name == "small-sweep"


def test_it_runs_from_the_command_line(
    made: Made, tree: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(json.dumps(tree))
    words = ["attack", "sweep", str(recipe), "--vary", "finetune.training.lr=1e-4..1e-2:log", "--trials", "2"]
    words += ["--out", str(tmp_path / "runs"), "--arm", "plain"]
    made.stop_at = 2
    assert main(words) == 130
    assert "run the same command again to resume" in capsys.readouterr().err
    made.stop_at = None
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "Undefended, worst of 3" in " ".join(said.split())
    assert "at the recipe's own settings" in " ".join(said.split())
    assert len(made.trained) == 3
    assert len(trials(Record.load(tmp_path / "runs" / "small-sweep.json"), "plain")) == 3
    assert (tmp_path / "runs" / "small-sweep.html").is_file()


def test_without_optuna_it_says_what_to_install(
    tree: dict[str, Any], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna.storages", None)
    with pytest.raises(ConfigError, match=r"a sweep needs Optuna: pip install 'moored\[sweep\]'"):
        sweep(tree).run(store, tmp_path / "trials")


def test_two_processes_do_not_share_a_search(tree: dict[str, Any], store: Store, tmp_path: Path) -> None:
    with FileLock(tmp_path / ".trials.busy"), pytest.raises(StudyError, match="another process works on"):
        sweep(tree).run(store, tmp_path / "trials")


def test_what_an_attacker_usually_chooses(tree: dict[str, Any]) -> None:
    line = sweep(tree).searched[0].line
    assert usual(line) == (
        Vary(path="finetune.training.lr", low=5e-5, high=8e-4, log=True),
        Vary(path="finetune.training.steps", values=(1, 2, 4)),
        Vary(path="attack.harmful_mix.ratio", values=(0.1, 0.2, 0.4, 0.6)),
        Vary(path="attack.harmful_mix.seed", values=(0, 1, 2)),
    )
    other = {"attack": {"harmful_mix": None, "explicit_harm": {"n": 12, "seed": 5}}}
    epochs = {"finetune": {"training": {"steps": None, "epochs": 3}}}
    line = sweep(merge(merge(tree, other), epochs)).searched[0].line
    assert [(v.path, v.values) for v in usual(line)][1:] == [
        ("finetune.training.epochs", (1.5, 3.0, 6.0)),
        ("attack.explicit_harm.seed", (5, 6, 7)),
    ]


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("finetune.training.lr=1e-4..1e-2:log", LR),
        ("a.b=0..1", Vary(path="a.b", low=0, high=1)),
        ("a.b= 0.05, 0.1 ,0.3", Vary(path="a.b", values=(0.05, 0.1, 0.3))),
        ("a.b=attention,all-linear", Vary(path="a.b", values=("attention", "all-linear"))),
    ],
)
def test_what_is_varied_is_read(text: str, meant: Vary) -> None:
    assert Vary.parse(text) == meant


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a.b", "must look like `finetune.training.lr=1e-4..1e-3:log`"),
        ("=1,2", "must look like"),
        ("a.b=low..1", "a number on either side"),
        ("a.b=1..2:lgo", "did you mean 'log'"),
        ("a.b=2..1", "`a.b` of --vary must be a range from low to high; got '2..1'"),
        ("a.b=0..1:log", "above 0 for a logarithm"),
        ("a.b=1,1", "different values"),
        ("a.b={c: 1},2", "numbers or words"),
    ],
)
def test_what_cannot_be_varied_is_named(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Vary.parse(text)
    assert said in str(caught.value)


def test_numbers_from_a_range_can_be_written_down() -> None:
    assert LR.setting(0.00123456) == 0.00123
    assert Vary(path="a", low=0.12345, high=0.123456).setting(0.1234) == 0.12345
    assert Vary(path="a", values=(0.123456,)).setting(0.123456) == 0.123456


@pytest.mark.parametrize(
    ("given", "change", "said"),
    [
        ({"vary": (Vary(path="finetune.training.lrr", values=(1,)),)}, {}, "did you mean 'lr'"),
        ({"arms": ("plian",)}, {}, "did you mean 'plain'"),
        ({"trials": 0}, {}, "`trials` of a sweep must be >= 1"),
        ({"keep": 1.5}, {}, "`keep` of a sweep must be between 0 and 1"),
        ({}, {"tasks": {"utility": None}}, "needs a task about utility"),
        ({}, {"tasks": {"utility": {"n": 0}}}, "`n` of task utility must be >= 1"),
        ({}, {"arms": {"plain": {"tasks": {"utility": {"n": 9}}}}}, "asked the same tasks"),
        (
            {},
            {"attack": None, "finetune": None, "arms": {"repaired": None}},
            "needs an arm with `attack` and `finetune`",
        ),
        ({}, {"arms": {"plain": None}}, "an arm without defences and repairs"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    tree: dict[str, Any], given: dict[str, Any], change: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        sweep(merge(tree, change), **given)
    assert said in str(caught.value)
