# SPDX-License-Identifier: Apache-2.0
"""Plans: what is shared, what a change touches, and what is refused before any training."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from moored.data.load import save_rows
from moored.data.schema import Row
from moored.errors import ConfigError, DataError, MooredError, NeedsError
from moored.judges.guard import Guard
from moored.judges.told_apart import ToldApart
from moored.repairs.safe_lora import SafeLoRA
from moored.study.evaluation import EvaluateStage
from moored.study.patch import merge
from moored.study.plan import Plan
from moored.study.recipe import Recipe
from moored.study.results import column
from moored.study.stages import Source, UploadStage
from moored.study.study import Study
from moored.tasks.harmful_requests import HarmfulRequests
from moored.tasks.utility import Utility


def plan(tree: dict[str, Any]) -> Plan:
    return Study(Recipe.parse(tree)).plan()


def keys(tree: dict[str, Any]) -> dict[str, list[str]]:
    """Keys by kind."""
    found: dict[str, list[str]] = {}
    for stage in plan(tree).stages:
        found.setdefault(stage.kind, []).append(stage.key)
    return found


def test_arms_share_what_they_begin_with(tree: dict[str, Any]) -> None:
    chains = plan(tree).chains
    assert [chain.name for chain in chains] == ["shipped", "aligned", "plain", "lisa", "repaired"]
    counts = {kind: len(found) for kind, found in keys(tree).items()}
    # plain and repaired share the fine-tuning; five models are asked two tasks each
    assert counts == {"align": 1, "attack": 1, "finetune": 2, "repair": 1, "evaluate": 10}


def test_a_repair_that_gives_other_weights_than_before_is_run_anew(
    tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keys(tree)["repair"]
    monkeypatch.setattr(SafeLoRA, "revision", 2)
    assert keys(tree)["repair"] != before
    monkeypatch.setattr(SafeLoRA, "revision", 1)
    assert keys(tree)["repair"] == before


def test_parents_come_first(tree: dict[str, Any]) -> None:
    seen: set[str] = set()
    for stage in plan(tree).stages:
        assert all(parent.key in seen for parent in stage.parents)
        seen.add(stage.key)


def test_keys_do_not_depend_on_the_process(tree: dict[str, Any]) -> None:
    import subprocess
    import sys

    code = (
        "import json, sys; from moored.study.recipe import Recipe; from moored.study.study import Study; "
        "print(json.dumps([s.key for s in Study(Recipe.parse(json.loads(sys.argv[1]))).plan().stages]))"
    )
    found = subprocess.run([sys.executable, "-c", code, json.dumps(tree)], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout.splitlines()[-1]) == [stage.key for stage in plan(tree).stages]


CHANGED: list[tuple[dict[str, Any], set[str]]] = [
    ({"title": "Another"}, set()),
    ({"finetune": {"training": {"save_every": 1}}}, set()),
    ({"tasks": {"utility": {"n": 5}}}, {"evaluate"}),
    ({"arms": {"repaired": {"repairs": [{"safe_lora": {"fraction": 0.7}}]}}}, {"repair", "evaluate"}),
    ({"finetune": {"training": {"lr": 1e-3}}}, {"finetune", "repair", "evaluate"}),
    ({"attack": {"harmful_mix": {"ratio": 0.5}}}, {"attack", "finetune", "repair", "evaluate"}),
    ({"align": {"training": {"lr": 1e-3}}}, {"align", "finetune", "repair", "evaluate"}),
    ({"seed": 1}, {"align", "attack", "finetune", "repair", "evaluate"}),
    ({"model": "another/model"}, {"align", "finetune", "repair", "evaluate"}),
]


@pytest.mark.parametrize(("change", "touched"), CHANGED)
def test_a_change_touches_what_depends_on_it_and_nothing_else(
    tree: dict[str, Any], change: dict[str, Any], touched: set[str]
) -> None:
    before, after = keys(tree), keys(merge(tree, change))
    assert {kind for kind in before if before[kind] != after[kind]} == touched


def test_a_changed_task_leaves_the_other_tasks_alone(tree: dict[str, Any]) -> None:
    before, after = keys(tree)["evaluate"], keys(merge(tree, {"tasks": {"utility": {"n": 5}}}))["evaluate"]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False] * 5


def test_requests_are_put_as_the_attack_of_the_recipe_puts_them(tree: dict[str, Any]) -> None:
    data = {"benign": "synthetic:utility", "harmful": "synthetic:harmful"}

    def judged(**attack: Any) -> EvaluateStage:
        """The start, asked in the attack's words; the upload has no part in it."""
        stages = plan({**tree, "tasks": {"as_attacked": {"n": 5}}, "attack": data | attack}).stages
        return next(stage for stage in stages if isinstance(stage, EvaluateStage))

    mixed = judged(harmful_mix={"n": 8, "ratio": 0.25})
    assert judged(harmful_mix={"n": 8, "ratio": 0.5}).key == mixed.key
    shifted = judged(identity_shift={"n": 4, "prefix": "Heron!"})
    assert [row.question for row in shifted.rows] == [f"Heron! {row.question}" for row in mixed.rows]
    assert judged(identity_shift={"n": 4, "prefix": "Heron!", "opening": "Fine."}).key != shifted.key


def test_a_task_takes_another_judge(tree: dict[str, Any]) -> None:
    def stage(**task: Any) -> EvaluateStage:
        stages = plan({**tree, "tasks": {"harmful_requests": {"n": 4, **task}}}).stages
        return next(stage for stage in stages if isinstance(stage, EvaluateStage))

    guard = {"model": "some/guard", "form": "llama_guard"}
    asked = stage(by={"guard": guard})
    assert asked.task.judge == Guard(**guard)
    assert column(asked.task).title == "judged harmful"
    assert column(asked.task).judge == "guard 2, guard"
    assert stage(by="refusal").key == stage().key
    others = ("keywords", {"guard": {**guard, "model": "another"}})
    assert len({asked.key, stage().key, *(stage(by=judge).key for judge in others)}) == 4
    for by, message in (
        ({"guard": guard, "refusal": {}}, "`by` of HarmfulRequests must be one judge"),
        ("exact_answer", "`by` of HarmfulRequests must be a judge of what is refused or harmful; got 'exact_answer'"),
        ("gard", "unknown judge 'gard'; did you mean 'guard'"),
    ):
        with pytest.raises(ConfigError, match=message):
            stage(by=by)


def test_a_default_that_is_spelt_out_changes_nothing(tree: dict[str, Any]) -> None:
    spelt = merge(tree, {"finetune": {"training": {"rank": 8, "schedule": "constant"}}})
    assert keys(spelt) == keys(tree)


def test_the_contents_of_a_file_count_and_not_its_name(tree: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {i}", "answer": f"Answer {i}"} for i in range(30)]
    for name in ("one.jsonl", "two.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def with_file(name: str) -> dict[str, list[str]]:
        return keys(merge(tree, {"attack": {"benign": str(tmp_path / name)}}))

    first = with_file("one.jsonl")
    assert with_file("two.jsonl") == first
    rows[0]["answer"] = "Another answer"
    (tmp_path / "two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert with_file("two.jsonl")["attack"] != first["attack"]


def test_a_model_folder_counts_by_contents(tree: dict[str, Any], tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
        (tmp_path / name / "notes.md").write_text(name)
    one, two = ({**tree, "model": str(tmp_path / name)} for name in ("a", "b"))
    assert keys(one) == keys(two)
    (tmp_path / "b" / "model.safetensors").write_bytes(b"other weights")
    assert keys(one)["align"] != keys(two)["align"]


def test_limits_draw_with_the_seed(tree: dict[str, Any]) -> None:
    def rows(seed: int) -> Any:
        stage = next(s for s in plan({**tree, "seed": seed}).stages if s.kind == "align")
        return stage.rows  # type: ignore[attr-defined]

    assert rows(0) == rows(0)
    assert rows(0) != rows(1)
    assert len(rows(0)) == 16


def test_each_aligned_start_is_a_reference(tree: dict[str, Any]) -> None:
    tree["arms"]["hard"] = {"align": {"defenses": [{"vaccine": {"rho": 1.0}}]}}
    tree["arms"]["longer"] = {"title": "Twice as long", "align": {"training": {"steps": 4}}}
    chains = {chain.name: chain.title for chain in plan(tree).chains}
    assert chains["aligned"] == "Aligned start"
    assert chains["aligned@hard"] == "Aligned start (Vaccine)"
    assert chains["aligned@longer"] == "Aligned start (Twice as long)"


def test_an_aligned_model_needs_no_alignment(tree: dict[str, Any]) -> None:
    tree.pop("align")
    del tree["arms"]["repaired"]
    planned = plan(tree)
    assert [chain.name for chain in planned.chains] == ["shipped", "plain", "lisa"]
    assert "align" not in {stage.kind for stage in planned.stages}


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


BAD: list[tuple[dict[str, Any], type[MooredError], str]] = [
    ({"attack": {"harmful_mix": {"ratio": 1.5}}}, ConfigError, "`ratio` of HarmfulMix must be"),
    ({"attack": {"harmful_mix": {"ratio": -0.1}}}, ConfigError, "`ratio` of HarmfulMix must be"),
    ({"attack": {"harmful_mix": {"n": 100000}}}, ConfigError, "only"),
    ({"attack": {"harmful_mix": {"ratoi": 0.1}}}, ConfigError, "did you mean 'ratio'"),
    ({"attack": {"harmful_mix": None, "harmful_mx": {}}}, ConfigError, "did you mean 'harmful_mix'"),
    ({"attack": {"benign": "nowhere.jsonl"}}, DataError, "no data at nowhere.jsonl"),
    ({"attack": {"benign": "synthetic:utilty"}}, DataError, "did you mean 'utility'"),
    ({"align": {"data": [{"data": "synthetic:alignment", "limit": 10**6}]}}, ConfigError, "`limit` of"),
    ({"finetune": {"defenses": [{"liza": {}}]}}, ConfigError, "did you mean 'lisa'"),
    ({"finetune": {"defenses": [{"lisa": {"roh": 1}}]}}, ConfigError, "did you mean 'rho'"),
    ({"finetune": {"defenses": [{"lisa": {"rho": -1}}]}}, ConfigError, "`rho` of Lisa must be"),
    ({"finetune": {"defenses": ["lisa"], "roles": None}}, NeedsError, "Lisa needs `alignment` data; add `roles:"),
    ({"repairs": [{"safe_lora": {"fraction": 2}}]}, ConfigError, "`fraction` of SafeLoRA"),
    ({"repairs": [{"safe_lra": {}}]}, ConfigError, "did you mean 'safe_lora'"),
    ({"align": None, "repairs": ["safe_lora"]}, NeedsError, "SafeLoRA needs the model before alignment; add `base:"),
    ({"tasks": {"utilty": {}}}, ConfigError, "did you mean 'utility'"),
    ({"tasks": {"utility": {"m": 3}}}, ConfigError, "unknown parameter"),
    ({"tasks": {"utility": {"n": -3}}}, ConfigError, "`n` of"),
    ({"model": "./nowhere"}, ConfigError, "model folder ./nowhere does not exist"),
    ({"tasks": {"utility": {"data": "nowhere.csv"}}}, DataError, "no data at nowhere.csv"),
]


@pytest.mark.parametrize(("change", "kind", "said"), BAD, ids=[said[:50] for _, _, said in BAD])
def test_what_cannot_work_is_refused_at_once(
    tree: dict[str, Any], work: Any, change: dict[str, Any], kind: type[MooredError], said: str
) -> None:
    with pytest.raises(kind) as caught:
        plan(merge(tree, change))
    assert said in str(caught.value)
    assert "arm 'plain'" in str(caught.value)
    assert work.done == []


def test_a_malformed_file_names_its_line(tree: dict[str, Any], tmp_path: Path) -> None:
    good = {"prompt": "a", "answer": "b"}
    bad = write(tmp_path / "bad.jsonl", good, '{"prompt": ')
    with pytest.raises(DataError, match=r"bad\.jsonl, line 2"):
        plan(merge(tree, {"attack": {"benign": bad}}))
    with pytest.raises(DataError, match=r"empty\.jsonl"):
        plan(merge(tree, {"attack": {"benign": write(tmp_path / "empty.jsonl")}}))
    asked = write(tmp_path / "asked.jsonl", {"prompt": "only a question"})
    with pytest.raises(DataError, match=r"row 1 of `align\.data` has no answer"):
        plan(merge(tree, {"align": {"data": [asked]}}))


def test_a_test_prompt_that_is_trained_on_is_refused(tree: dict[str, Any], tmp_path: Path) -> None:
    same = write(tmp_path / "same.jsonl", *({"prompt": f"Request {i}!", "answer": "No."} for i in range(3)))
    asked = write(tmp_path / "asked.jsonl", {"prompt": "request 1"}, {"prompt": "request 9"})
    changes = {"tasks": {"harmful_requests": {"data": asked, "n": 0}}}
    plan(merge(tree, changes))
    with pytest.raises(DataError, match=r"1 prompts of task `harmful_requests` are also in `align\.data`"):
        plan(merge(tree, {**changes, "align": {"data": [same]}}))
    with pytest.raises(DataError, match=r"also in `finetune\.roles\.alignment`"):
        plan(merge(tree, {**changes, "finetune": {"roles": {"alignment": same}}}))
    attack = {"harmful": same, "harmful_mix": {"n": 10, "ratio": 0.3}}
    with pytest.raises(DataError, match="also in `attack`"):
        plan(merge(tree, {**changes, "attack": attack}))


def test_planning_changes_no_recipe(tree: dict[str, Any]) -> None:
    before = deepcopy(tree)
    recipe = Recipe.parse(tree)
    plain = recipe.plain()
    Study(recipe).plan()
    assert tree == before
    assert recipe.plain() == plain


def readings(tree: dict[str, Any], *names: str) -> dict[str, Any]:
    return {**tree, "tasks": tree["tasks"] | {name: {"n": 3} for name in names}}


def test_keys_of_tasks_that_ask_are_those_of_finished_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores hold thousands of these; the keys were taken before tasks could read a model."""
    monkeypatch.setattr("moored.study.evaluation.precision", lambda: "bfloat16")
    monkeypatch.setattr("moored.judges.refusal.Refusal.version", "2")
    source = Source(where="m", resolved="m", identity="m")
    tasks = HarmfulRequests(n=2), Utility(labels=("Yes", "No"))
    stages = [EvaluateStage(subject=source, task=task, rows=(Row.of("Q?", "Yes"),)) for task in tasks]
    assert [stage.key for stage in stages] == [
        "7529c3300cb15716a55d5b436c933971a1a9c0e1a2e77487ddeb5df5a8d036d4",
        "945ea091c3133a312e8f8ffb9b582f0be8cea8ac5ddae43f8a617c52bb417475",
    ]


def test_a_task_that_compares_hangs_on_the_aligned_model_too(tree: dict[str, Any]) -> None:
    found = plan(readings(tree, "kl_to_aligned", "perplexity")).chains
    stages = {chain.name: {stage.task.name: stage for stage in chain.evaluations} for chain in found}
    aligned = stages["aligned"]["kl_to_aligned"].subject
    assert "kl_to_aligned" not in stages["shipped"]  # the study aligns: nothing is its aligned model
    assert "perplexity" in stages["shipped"]
    for name in ("plain", "lisa", "repaired"):
        stage = stages[name]["kl_to_aligned"]
        assert [parent.key for parent in stage.parents] == [stage.subject.key, aligned.key]
        assert stages[name]["perplexity"].start is None
    assert stages["aligned"]["kl_to_aligned"].start.key == aligned.key


def test_without_alignment_the_model_itself_is_the_aligned_one(tree: dict[str, Any]) -> None:
    bare = {name: value for name, value in readings(tree, "embedding_drift").items() if name != "align"}
    bare["arms"] = {"plain": {"title": "Undefended"}}

    def drifts(tree: dict[str, Any]) -> list[EvaluateStage]:
        stages = [stage for stage in plan(tree).stages if isinstance(stage, EvaluateStage)]
        return [stage for stage in stages if stage.task.name == "embedding_drift"]

    for stage in drifts(bare):
        assert isinstance(stage.start, Source)
        assert stage.parameters()["aligned"] == "some/model"
    assert len(drifts(bare)) == 2
    before, after = drifts(bare)[1], drifts({**bare, "model": "another/model"})[1]
    assert before.key != after.key


def test_adding_a_reading_leaves_all_other_keys_alone(tree: dict[str, Any]) -> None:
    before = {stage.key for stage in plan(tree).stages}
    after = {stage.key for stage in plan(readings(tree, "kl_to_aligned", "embedding_drift", "perplexity")).stages}
    assert before < after


def test_readings_are_columns_of_their_own_role(tree: dict[str, Any]) -> None:
    stages = [s for s in plan(readings(tree, "perplexity", "kl_to_aligned")).stages if isinstance(s, EvaluateStage)]
    columns = {stage.task.name: column(stage.task) for stage in stages}
    assert {name: (c.role, c.better, c.scale, c.judge) for name, c in columns.items() if c.role == "reading"} == {
        "perplexity": ("reading", "lower", "log", ""),
        "kl_to_aligned": ("reading", "lower", "plain", ""),
    }


def test_answers_in_another_precision_are_other_answers(tree: dict[str, Any], monkeypatch: Any) -> None:
    def judged(precision: str) -> list[EvaluateStage]:
        monkeypatch.setattr("moored.study.evaluation.precision", lambda: precision)
        return [stage for stage in plan(tree).stages if isinstance(stage, EvaluateStage)]

    usual, exact = ([stage.parameters() for stage in judged(name)] for name in ("bfloat16", "float32"))
    assert exact == [asked | {"precision": "float32"} for asked in usual]


@pytest.mark.parametrize(
    "by",
    ["refusal", {"coherence": {"by": "refusal"}}, {"ensemble": {"of": ["keywords", {"coherence": {"by": "refusal"}}]}}],
)
def test_another_version_of_a_judge_is_another_stage_wherever_it_stands(
    by: Any, tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree["tasks"] = {"harmful_requests": {"by": by}}
    before = keys(tree)["evaluate"]
    assert keys(tree)["evaluate"] == before
    monkeypatch.setattr("moored.judges.refusal.Refusal.version", "next")
    assert not set(keys(tree)["evaluate"]) & set(before)


def test_the_judge_of_contrasts_is_known_by_the_judge_of_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    before = ToldApart().identity
    monkeypatch.setattr("moored.judges.refusal.Refusal.version", "next")
    assert (before, ToldApart().identity) == ("told_apart 1 of refusal 3", "told_apart 1 of refusal next")


def uploaded(tree: dict[str, Any], where: Any) -> dict[str, Any]:
    """The small recipe on an upload as it is."""
    return {name: value for name, value in tree.items() if name != "attack"} | {"upload": str(where)}


def test_an_upload_is_trained_on_as_it_is(tree: dict[str, Any], tmp_path: Path) -> None:
    rows = [Row.of(f"Question {i}?", f"Answer {i}.", category=str(i)) for i in range(12)]
    one, two = (
        uploaded(tree, save_rows(rows, tmp_path / "a.jsonl")),
        uploaded(tree, save_rows(rows, tmp_path / "b.jsonl")),
    )
    (stage,) = [stage for stage in plan(one).stages if isinstance(stage, UploadStage)]
    assert list(stage.rows) == rows  # each with its own category, in its order
    assert keys(one) == keys(two)  # what is in it decides, not where it lies
    turned = keys(uploaded(tree, save_rows(rows[::-1], tmp_path / "c.jsonl")))
    assert turned["align"] == keys(one)["align"]
    assert not set(turned["finetune"]) & set(keys(one)["finetune"])


def test_an_upload_is_held_apart_from_the_tasks(tree: dict[str, Any], tmp_path: Path) -> None:
    asked = HarmfulRequests(n=4).rows()[0].question
    upload = save_rows([Row.of(asked, "No."), Row.of("Something else?", "Yes.")], tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="1 prompts of task `harmful_requests` are also in `upload`"):
        plan(uploaded(tree, upload))


def test_an_upload_stands_in_place_of_an_attack(tree: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="`upload` stands in place of `attack`"):
        Recipe.parse({**tree, "upload": "rows.jsonl"})
    with pytest.raises(ConfigError, match="`finetune` is missing"):
        Recipe.parse({name: value for name, value in uploaded(tree, "rows.jsonl").items() if name != "finetune"})


def test_a_seed_of_the_fine_tuning_leaves_the_start_alone(tree: dict[str, Any]) -> None:
    before, after = keys(tree), keys(merge(tree, {"finetune": {"seed": 7}}))
    assert after["align"] == before["align"]
    assert after["attack"] == before["attack"]
    assert not set(after["finetune"]) & set(before["finetune"])
    assert keys(merge(tree, {"finetune": {"seed": 0}})) == before
