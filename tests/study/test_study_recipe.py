# SPDX-License-Identifier: Apache-2.0
"""Recipes: what is read, and what is refused with which words."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from moored.errors import ConfigError
from moored.study.grid import spread
from moored.study.patch import merge
from moored.study.recipe import Recipe, TrainingSpec, packaged


def load(tmp_path: Path, text: str, **options: Any) -> Recipe:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    return Recipe.load(path, **options)


def test_scientific_notation_is_a_number(tree: dict[str, Any], tmp_path: Path) -> None:
    import yaml

    text = yaml.safe_dump(tree) + "\nseed: 7\n"
    recipe = load(tmp_path, text, sets=["finetune.training.lr=1e-4", "arms.lisa.finetune.defenses.lisa.rho=5e-1"])
    assert recipe.finetune is not None
    assert recipe.finetune.training.lr == 1e-4
    assert recipe.arms["lisa"]["finetune"]["defenses"][0]["lisa"]["rho"] == 0.5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("- a\n", "holds a list"),
        ("name: a\nb: [1, 2\nc: 3\n", "line 3"),
        ("name: a\nmodel: tiny\nname: b\n", "line 3: not valid YAML: the key 'name' stands twice"),
        ("\tname: a\n", "line 1"),
        ("name: \x01\n", "not valid YAML"),
    ],
)
def test_text_that_is_no_recipe(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r"r\.yaml") as caught:
        load(tmp_path, text)
    assert said in str(caught.value)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml cannot be read: No such file"):
        Recipe.load("nowhere.yaml")
    with pytest.raises(ConfigError, match="unknown recipe 'dmo'; did you mean 'demo'"):
        Recipe.load("dmo")


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"modle": "x"}, "unknown key 'modle'; did you mean 'model'"),
    ({"align": {"trainng": {}}}, "unknown key of `align` 'trainng'; did you mean 'training'"),
    ({"finetune": {"training": {"learning_rate": 1}}}, "unknown key of `finetune.training` 'learning_rate'"),
    ({"align": {"data": [{"dat": "x"}]}}, "unknown key of `align.data.0` 'dat'; did you mean 'data'"),
    ({"model": None}, "`model` is missing"),
    ({"tasks": None}, "`tasks` is missing"),
    ({"seed": -1}, "`seed` must be greater than or equal to 0; got -1"),
    ({"finetune": {"training": {"lr": "fast"}}}, "`finetune.training.lr` must be a valid number"),
    ({"finetune": {"training": {"lr": 0}}}, "must be greater than 0; got 0"),
    ({"finetune": {"training": {"epochs": 1}}}, "exactly one of `steps` and `epochs`"),
    ({"finetune": None}, "`attack` and `finetune` go together; `finetune` is missing"),
    ({"attack": {"harmful_mix": None}}, "exactly one attack beside `benign` and `harmful`"),
    ({"attack": {"other": {}}}, "got harmful_mix, other"),
    ({"repairs": [{"a": {}, "b": {}}]}, "one method per entry"),
    ({"name": "Not A Stem"}, "`name`"),
    ({"arms": {}, "grid": {"seed": "x"}}, "`grid.seed`"),
    ({"expect": [{"arm": "plain", "task": "t", "op": "=", "bound": 1}]}, "`expect.0.op`"),
]


@pytest.mark.parametrize(("change", "said"), CHANGES, ids=[said[:40] for _, said in CHANGES])
def test_each_mistake_is_named(tree: dict[str, Any], change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe.parse(merge(tree, change))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


SETS = [
    ("finetune.trainng.lr=1", "unknown key of `finetune` 'trainng'; did you mean 'training'"),
    ("finetune.training.l=1", "did you mean 'lr'"),
    ("fintune.training.lr=1", "did you mean 'finetune'"),
    ("attack.harmful_mx.ratio=0.3", "did you mean 'harmful_mix'"),
    ("tasks.utilty.n=3", "did you mean 'utility'"),
    ("arms.lsa.seed=1", "did you mean 'lisa'"),
    ("arms.repaired.repairs.safe_lra.fraction=1", "did you mean 'safe_lora'"),
    ("align.data.7.limit=1", "unknown entry of `align.data` '7'"),
    ("seed.x=1", "unknown key 'x'"),
    ("model.x.y=1", "leads into `model`, which is the value 'some/model'"),
    ("seed", "must look like"),
    ("=3", "must look like"),
    ("seed=[", "not valid YAML"),
]


@pytest.mark.parametrize(("text", "said"), SETS[:8] + SETS[9:])
def test_a_wrong_path_lists_the_nearest(tree: dict[str, Any], text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe.parse(tree, sets=[text])
    assert said in str(caught.value)


def test_sets_come_after_the_profile_and_null_removes(tree: dict[str, Any]) -> None:
    tree["profiles"] = {"tiny": {"seed": 3, "tasks": {"utility": None}, "align": {"training": {"steps": 1}}}}
    recipe = Recipe.parse(tree, profile="tiny", sets=["seed=4", "arms.lisa=null"])
    assert recipe.seed == 4
    assert list(recipe.tasks) == ["harmful_requests"]
    assert list(recipe.arms) == ["plain", "repaired"]
    assert recipe.align is not None
    assert (recipe.align.training.steps, recipe.align.training.batch) == (1, 4)
    with pytest.raises(ConfigError, match="unknown profile 'tny'; did you mean 'tiny'"):
        Recipe.parse(tree, profile="tny")


def test_profiles_are_merged_in_order(tree: dict[str, Any]) -> None:
    tree["profiles"] = {
        "short": {"seed": 3, "align": {"training": {"steps": 1}}},
        "long": {"seed": 5, "tasks": {"utility": None}},
    }
    recipe = Recipe.parse(tree, profile=["short", "long"])
    assert recipe.align is not None
    assert (recipe.seed, recipe.align.training.steps, list(recipe.tasks)) == (5, 1, ["harmful_requests"])
    assert Recipe.parse(tree, profile=["long", "short"]).seed == 3
    assert Recipe.parse(tree, profile=["short"]) == Recipe.parse(tree, profile="short")
    assert Recipe.parse(tree, profile=[]) == Recipe.parse(tree)
    with pytest.raises(ConfigError, match="unknown profile 'shorter'; did you mean 'short'"):
        Recipe.parse(tree, profile=["long", "shorter"])


def test_a_sweep_of_attacks_can_be_a_toy() -> None:
    recipe = Recipe.load("attacks", profile=["tiny", "sweep"])
    assert recipe.model == "tiny"
    assert list(recipe.attacks) == list(Recipe.load("attacks", profile="sweep").attacks)


def test_plain_values_make_the_same_recipe(tree: dict[str, Any]) -> None:
    recipe = Recipe.parse(tree)
    assert Recipe.parse(recipe.plain()) == recipe


def test_the_training_fields_are_those_of_the_trainer() -> None:
    from moored.hf.train import Training

    spec = TrainingSpec(steps=1)
    ours = {name: field.default for name, field in TrainingSpec.model_fields.items()}
    theirs = {field.name: field.default for field in fields(Training) if field.name != "seed"}
    assert ours == theirs | {"dtype": None}  # the trainer's depends on the machine
    assert Training(**spec.model_dump(exclude_none=True)).steps == 1


@pytest.mark.parametrize("name", list(packaged()))
@pytest.mark.parametrize("profile", [None, "tiny"])
def test_packaged_recipes_are_valid(name: str, profile: str | None) -> None:
    recipe = Recipe.load(name, profile=profile)
    assert recipe.name == name
    assert f"moored run {name}" in packaged()[name].read_text().splitlines()[0]


def test_the_schema_names_every_field() -> None:
    schema = Recipe.model_json_schema()
    assert set(schema["properties"]) == set(Recipe.model_fields)
    assert all("description" in field for name, field in schema["properties"].items() if name not in ("align",))


def test_some_arms_with_the_promises_that_are_theirs_alone():
    whole = Recipe.load("demo")
    some = Recipe.load("demo", arms=["lisa", "undefended"])
    assert list(some.arms) == ["undefended", "lisa"]
    assert {e.arm for e in some.expect} == {"aligned", "undefended", "lisa"}
    assert len(some.expect) == sum({e.arm, e.against} <= {"aligned", "undefended", "lisa", None} for e in whole.expect)
    with pytest.raises(ConfigError, match="lisa"):
        Recipe.load("demo", arms=["lsia"])


def test_arms_that_are_kept_take_their_own_axes_along(tree: dict[str, Any]) -> None:
    tree["arms"]["scaled"] = {"repairs": [{"scale_adapter": {"scale": 0.5}}]}
    tree["grid"] = {
        "repairs.safe_lora.fraction": [0.25, 0.5],
        "repairs.scale_adapter.scale": [0.5],
        "attack.harmful_mix.ratio": [0, 0.1],
    }
    recipe = Recipe.parse(tree, arms=["repaired"])
    assert list(recipe.grid) == ["repairs.safe_lora.fraction", "attack.harmful_mix.ratio"]
    assert len(spread(recipe)) == 4
    assert list(Recipe.parse(tree, arms=["plain"]).grid) == ["attack.harmful_mix.ratio"]


def test_an_axis_that_leads_nowhere_is_still_an_error_with_fewer_arms(tree: dict[str, Any]) -> None:
    tree["grid"] = {"repairs.save_lora.fraction": [0.25, 0.5]}
    with pytest.raises(ConfigError, match="grid: .*'save_lora'"):
        spread(Recipe.parse(tree, arms=["plain"]))
