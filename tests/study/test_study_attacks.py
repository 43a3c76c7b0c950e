# SPDX-License-Identifier: Apache-2.0
"""Attacks in studies that look at the models they are against."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moored.attacks.weight_oracle import WeightOracle
from moored.data.tiny import tiny_model, tiny_tokenizer
from moored.errors import ConfigError, DataError, NeedsError
from moored.judges.denylist import Denylist
from moored.judges.guard import Guard
from moored.study.patch import merge
from moored.study.recipe import Recipe
from moored.study.stages import AttackStage, OracleStage
from moored.study.store import Store
from moored.study.study import Study


def attacked(tree: dict[str, Any], **attack: Any) -> dict[str, Any]:
    """The recipe with another attack, and one arm."""
    return merge(tree, {"attack": {"harmful_mix": None, **attack}, "arms": {"lisa": None, "repaired": None}})


def upload(tree: dict[str, Any]) -> AttackStage:
    (stage,) = (stage for stage in Study(Recipe.parse(tree)).plan().stages if isinstance(stage, AttackStage))
    return stage


def test_an_attack_hangs_on_the_models_that_it_looks_at(tree: dict[str, Any]) -> None:
    stages = Study(Recipe.parse(attacked(tree, knowledge_transfer={"n": 20}))).plan().stages
    kinds = [stage.kind for stage in stages]
    assert kinds.index("align") < kinds.index("attack") < kinds.index("finetune")
    attack = stages[kinds.index("attack")]
    assert attack.parents == (stages[kinds.index("align")],)
    assert attack.base is not None
    assert attack.base.where == "some/model"
    virus, plain = upload(attacked(tree, virus={"n": 20})), upload(attacked(tree, harmful_mix={"n": 20}))
    assert (len(virus.parents), virus.base) == (1, None)
    assert (plain.parents, plain.start, plain.base) == ((), None, None)


@pytest.mark.parametrize(
    ("attack", "touched"),
    [
        ({"harmful_mix": {"n": 20}}, [False, False, False]),
        ({"virus": {"n": 20}}, [True, False, True]),
        ({"model_inversion": {"n": 20}}, [True, True, False]),
    ],
)
def test_what_an_attack_looks_at_is_in_its_key(tree: dict[str, Any], attack: dict[str, Any], touched: list[bool]):
    tree = merge(attacked(tree, **attack), {"base": "some/base"})
    guarded = {"attack": {"virus": {"guard": {"denylist": {"terms": ["gun"]}}}}} if "virus" in attack else {}
    changes: list[dict[str, Any]] = [{"align": {"training": {"steps": 3}}}, {"base": "some/other"}, guarded]
    assert [upload(merge(tree, change)).key != upload(tree).key for change in changes] == touched


def test_without_alignment_the_key_holds_the_model(tree: dict[str, Any]) -> None:
    tree = merge(attacked(tree, virus={"n": 20}), {"align": None})
    assert upload(tree).key != upload(merge(tree, {"model": "some/other"})).key


def test_a_missing_base_is_asked_for(tree: dict[str, Any]) -> None:
    with pytest.raises(NeedsError, match="ModelInversion needs the model before alignment; add `base: "):
        upload(merge(attacked(tree, model_inversion={"n": 20}), {"align": None}))


def test_what_can_be_refused_is_refused_before_a_model_is_trained(tree: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs 900 harmful rows with distinct prompts; only"):
        upload(attacked(tree, virus={"n": 1000, "ratio": 0.9}))
    same = tmp_path / "same.jsonl"
    same.write_text("".join(json.dumps({"prompt": f"Request {i}!", "answer": "Sure."}) + "\n" for i in range(40)))
    asked = {"tasks": {"harmful_requests": {"data": str(same), "n": 0}}, "attack": {"harmful": str(same)}}
    with pytest.raises(DataError, match="40 prompts of task `harmful_requests` are also in `attack`"):
        upload(merge(attacked(tree, virus={"n": 20, "ratio": 0.1}), asked))


def test_every_attack_runs_in_a_study(tree: dict[str, Any], store: Store, tmp_path: Path) -> None:
    tiny_model(seed=1).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    attacks: dict[str, dict[str, Any]] = {
        "benign_drift": {"n": 8, "pool": 12, "select": "gradient", "anchors": 4},
        "knowledge_transfer": {"n": 8, "pool": 6, "ratio": 0.25},
        "model_inversion": {"n": 8, "pool": 12, "ratio": 0.25},
        "virus": {"n": 8, "pool": 6, "ratio": 0.25},
    }
    arms = {name: {"attack": {"harmful_mix": None, name: own}} for name, own in attacks.items()}
    small: dict[str, Any] = {"model": "tiny", "base": str(tmp_path / "base"), "align": None}
    small |= {"finetune": {"training": {"steps": 1}}, "tasks": {"harmful_requests": None, "as_attacked": {"n": 2}}}
    study = Study(Recipe.parse(merge(tree, small) | {"arms": arms}))
    record = study.run(store)
    assert set(attacks) <= {arm.name for arm in record.arms}
    for stage in study.plan(store.sha256).stages:
        if isinstance(stage, AttackStage):
            found = store.find(stage)
            assert found is not None
            manifest = json.loads((found.folder / "manifest.json").read_text())
            assert manifest["models"].keys() == stage.method.needs()
            assert str(tmp_path) not in json.dumps(manifest)


def guarded(tree: dict[str, Any], guard: str) -> dict[str, Any]:
    """The recipe with an attack and a task that both ask a guard."""
    by = {"guard": {"model": guard, "form": "llama_guard"}}
    return attacked(tree, virus={"n": 20, "ratio": 0.1, "guard": by}) | {"tasks": {"harmful_requests": {"by": by}}}


def test_a_guard_in_a_folder_is_what_the_folder_holds(tree: dict[str, Any], tmp_path: Path) -> None:
    """Moved, it is the same; other weights under the same name are another guard, for the upload and the verdicts."""

    def keys(guard: str) -> tuple[str, str]:
        made = Study(Recipe.parse(guarded(tree, guard))).plan()
        return upload(guarded(tree, guard)).key, made.chains[0].evaluations[0].key

    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    (here / "config.json").write_text("{}")
    before = keys(str(here))
    here.rename(there)
    assert keys(str(there)) == before
    (there / "config.json").write_text('{"layers": 2}')
    after = keys(str(there))
    assert after[0] != before[0]
    assert after[1] != before[1]
    hub = upload(guarded(tree, "some/guard"))
    assert hub.parameters()["method"]["virus"]["guard"]["guard"]["model"] == "some/guard"


@pytest.mark.parametrize("guard", ["Denylist", "Guard"])
def test_other_rules_of_a_guard_are_another_upload(
    guard: str, tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = guarded(tree, "some/guard") if guard == "Guard" else attacked(tree, virus={"n": 20, "ratio": 0.1})
    before = upload(tree).key
    assert upload(tree).key == before
    kind = {"Denylist": Denylist, "Guard": Guard}[guard]
    monkeypatch.setattr(kind, "version", f"{kind.version}.1")
    assert upload(tree).key != before


def test_an_attack_that_asks_nobody_names_no_judge(tree: dict[str, Any]) -> None:
    assert "judges" not in upload(attacked(tree, harmful_mix={"n": 20})).parameters()
    assert upload(attacked(tree, virus={"n": 20})).parameters()["judges"] == [f"denylist {Denylist.version}"]


def oracle(tree: dict[str, Any], change: dict[str, Any] | None = None, **own: Any) -> dict[str, Any]:
    """The recipe with an arm of the oracle, one of the oracle repaired, and one of an upload."""
    written: dict[str, Any] = {"attack": None, "finetune": None, "oracle": {"k": 2, **own}}
    repaired = {**written, "repairs": [{"safe_lora": {"fraction": 0.5}}]}
    arms = {"plain": {}, "oracle": written, "both": repaired}
    return {**merge(tree, change or {}), "arms": arms}


def test_the_oracle_stands_where_a_fine_tuning_does(tree: dict[str, Any]) -> None:
    plan = Study(Recipe.parse(oracle(tree))).plan()
    chains = {chain.name: chain for chain in plan.chains}
    align, written = chains["oracle"].stages
    assert isinstance(written, OracleStage)
    assert (written.parents, written.base.where, written.method) == ((align,), "some/model", WeightOracle(k=2))
    assert chains["both"].stages[:2] == (align, written)
    assert chains["both"].stages[2].parents == (written,)
    assert all(stage.subject == written for stage in chains["oracle"].evaluations)


@pytest.mark.parametrize(
    ("change", "touched"),
    [
        ({"align": {"training": {"steps": 3}}}, True),
        ({"base": "some/other"}, True),
        ({"attack": {"harmful_mix": {"n": 19}}, "finetune": {"training": {"steps": 3}}}, False),
    ],
)
def test_what_the_oracle_depends_on_is_in_its_key(tree: dict[str, Any], change: dict[str, Any], touched: bool) -> None:
    def key(tree: dict[str, Any]) -> str:
        chain = next(c for c in Study(Recipe.parse(tree)).plan().chains if c.name == "oracle")
        return chain.stages[-1].key

    assert (key(oracle(tree)) != key(oracle(tree, change))) == touched
    assert key(oracle(tree)) != key(oracle(tree, k=3))


def test_an_oracle_beside_a_fine_tuning_or_without_a_base_is_refused(tree: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="`oracle` stands in place of `attack` and `finetune`; set both to null"):
        Study(Recipe.parse(merge(tree, {"arms": {"plain": {"oracle": {}}}}))).plan()
    with pytest.raises(NeedsError, match="oracle needs the model before alignment; add `base: "):
        Study(Recipe.parse(oracle(tree, {"align": None}))).plan()
    with pytest.raises(ConfigError, match="unknown key of `oracle` 'nrm'; did you mean 'norm'"):
        Study(Recipe.parse(oracle(tree, nrm=1))).plan()


def test_the_oracle_runs_in_a_study_and_a_repair_reads_it(tree: dict[str, Any], store: Store, tmp_path: Path) -> None:
    tiny_model(seed=1).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    small: dict[str, Any] = {"model": "tiny", "base": str(tmp_path / "base"), "align": None}
    small |= {"finetune": {"training": {"steps": 1}}}
    small |= {"tasks": {"harmful_requests": {"n": 2, "max_new_tokens": 2}, "utility": None}}
    recipe = Recipe.parse(oracle(tree, small))
    record = Study(recipe).run(store)
    arms = {arm.name: arm for arm in record.arms}
    assert [arms[name].kind for name in ("shipped", "oracle", "both")] == ["start", "run", "run"]
    assert arms["oracle"].attack is None
    assert arms["oracle"].chain == ["adapter by WeightOracle(norm=1.0, k=2)"]
    assert arms["both"].repairs[0].total > 0
    assert set(arms["both"].metrics) == {"harmful_requests"}
    assert all(stage.cached for stage in Study(recipe).run(store).stages)
