# SPDX-License-Identifier: Apache-2.0
"""Arms and grids."""

from __future__ import annotations

from typing import Any

import pytest

from moored.errors import ConfigError
from moored.study.grid import spread
from moored.study.recipe import Recipe


def names(tree: dict[str, Any]) -> list[str]:
    return [arm.name for arm in spread(Recipe.parse(tree))]


def test_an_arm_is_the_line_with_its_changes(tree: dict[str, Any]) -> None:
    plain, lisa, repaired = spread(Recipe.parse(tree))
    assert [arm.title for arm in (plain, lisa, repaired)] == ["Undefended", "Lisa", "Safe LoRA"]
    assert plain.line.align == lisa.line.align == repaired.line.align
    assert lisa.line.finetune is not None
    assert lisa.line.finetune.defenses[0].parameters == {"rho": 1.0}
    assert lisa.line.finetune.training.steps == 2
    assert repaired.line.repairs[0].name == "safe_lora"


def test_every_arm_at_every_point(tree: dict[str, Any]) -> None:
    tree["grid"] = {"attack.harmful_mix.ratio": [0, 0.1], "seed": [0, 1, 2]}
    arms = spread(Recipe.parse(tree))
    assert len(arms) == 3 * 2 * 3
    last = arms[-1]
    assert last.name == "repaired@ratio=0.1,seed=2"
    assert last.point == {"ratio": 0.1, "seed": 2}
    assert last.line.seed == 2
    assert last.line.attack is not None
    assert last.line.attack.method.parameters["ratio"] == 0.1


def test_an_axis_of_a_method_moves_only_arms_that_have_it(tree: dict[str, Any]) -> None:
    tree["grid"] = {"repairs.safe_lora.fraction": [0.1, 0.9]}
    assert names(tree) == ["plain", "lisa", "repaired@fraction=0.1", "repaired@fraction=0.9"]


def test_short_names_are_as_short_as_they_can_be(tree: dict[str, Any]) -> None:
    tree["grid"] = {"align.training.lr": [1e-3], "finetune.training.lr": [1e-4], "seed": [0]}
    assert names(tree)[0] == "plain@align.training.lr=0.001,finetune.training.lr=0.0001,seed=0"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"grid": {"repairs.safe_lra.fraction": [1]}}, "grid: unknown"),
        ({"grid": {"finetune.training.stps": [1]}}, "did you mean 'steps'"),
        ({"grid": {"seed": []}}, "at least one value"),
        ({"grid": {"seed": [1, 1]}}, "different values"),
        ({"grid": {"seed": [-1]}}, "arm 'plain': `seed` must be"),
        ({"arms": {"aligned": {}}}, "none of shipped, aligned"),
        ({"arms": {"a@b": {}}}, "without '@'"),
        ({"arms": {"bad": {"fintune": {}}}}, "arm 'bad': unknown key 'fintune'; did you mean 'finetune'"),
    ],
)
def test_what_fits_nothing_is_refused(tree: dict[str, Any], change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        spread(Recipe.parse({**tree, **change}))
    assert said in str(caught.value)


def test_axes_of_other_methods_cost_nothing() -> None:
    recipe = Recipe.load("repairs")
    assert len(recipe.grid) > 12  # the product of all their values has millions of points
    arms = spread(recipe)
    assert {arm.arm for arm in arms} == set(recipe.arms)
    assert [arm.point for arm in arms if arm.arm == "resta"] == [{"gamma": 0.25}, {"gamma": 0.5}, {"gamma": 1.0}]
    assert len({arm.name for arm in arms}) == len(arms)


def test_every_arm_under_every_attack(tree: dict[str, Any]) -> None:
    tree["attacks"] = {
        "mix": {"finetune": {"training": {"lr": 1e-3}}},
        "shift": {"attack": {"harmful_mix": None, "identity_shift": {"n": 5}}},
    }
    tree["arms"]["written"] = {"attack": None, "finetune": None, "oracle": {}}
    tree["arms"]["slow"] = {"finetune": {"training": {"lr": 1e-5}}}
    arms = {arm.name: arm for arm in spread(Recipe.parse(tree))}
    assert list(arms) == [
        *(f"{name}@attack=mix" for name in ("plain", "lisa", "repaired")),
        "written",
        "slow@attack=mix",
        *(f"{name}@attack=shift" for name in ("plain", "lisa", "repaired", "slow")),
    ]
    shift = arms["lisa@attack=shift"]
    assert (shift.arm, shift.title, shift.point) == ("lisa", "Lisa (shift)", {"attack": "shift"})
    assert shift.line.attack is not None
    assert shift.line.attack.method.root == {"identity_shift": {"n": 5}}
    assert shift.line.attack.benign.data == "synthetic:utility"
    rates = {name: arm.line.finetune.training.lr for name, arm in arms.items() if arm.line.finetune}
    assert rates["plain@attack=mix"] == 1e-3
    assert rates["slow@attack=mix"] == 1e-5
    assert arms["written"].title == "written"


def test_attacks_and_a_grid(tree: dict[str, Any]) -> None:
    tree |= {"attacks": {"a": {}, "b": {}}, "grid": {"seed": [0, 1]}}
    assert names(tree)[:2] == ["plain@attack=a,seed=0", "plain@attack=a,seed=1"]
    assert len(names(tree)) == 3 * 2 * 2
    tree["attacks"]["b"] = {"fintune": {}}
    with pytest.raises(ConfigError, match="arm 'plain': unknown key 'fintune'"):
        spread(Recipe.parse(tree))
