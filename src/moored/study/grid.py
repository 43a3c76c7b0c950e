# SPDX-License-Identifier: Apache-2.0
"""From a recipe to its lines: every arm under every attack, at every point of the grid, each with all its values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from moored.errors import ConfigError, require
from moored.study.patch import NoSuchPath, assign, merge
from moored.study.recipe import Line, Recipe, open_keys, validated

REFERENCES = ("shipped", "aligned")
"""Names of the reference rows; no arm may have them."""
ATTACK = "attack"
"""The axis of the recipe's `attacks`."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm under one attack, at one point of the grid.

    Args:
        name: unique, for example `lisa` or `lisa@attack=virus,ratio=0.2`.
        arm: the arm's name in the recipe.
        title: row heading, with the attack's name.
        note: one remark shown with the arm.
        point: the grid's values here by short axis name, for example `{"ratio": 0.2}`, behind the attack's name.
        line: everything that is to be done.
    """

    name: str
    arm: str
    title: str
    line: Line
    note: str = ""
    point: Mapping[str, Any] = field(default_factory=dict)


def spread(recipe: Recipe) -> list[Arm]:
    """All arms under all attacks at all points, in the recipe's order, attack by attack.

    An axis that leads into a method which an arm does not have leaves that arm as it is, once; so do the attacks an arm
    without an upload.

    Raises:
        ConfigError: an arm or a point is not a valid line, an axis fits no arm, or a reserved name is used.
    """
    axes = _axes(recipe)
    fits = dict.fromkeys(axes, False)
    arms: dict[str, Arm] = {}
    for name in recipe.arms:
        require(name not in REFERENCES, "arms", "name", f"none of {', '.join(REFERENCES)}", name)
        require("@" not in name and bool(name), "arms", "name", "a non-empty name without '@'", name)
    for attack, (name, patch) in product(recipe.attacks or [""], recipe.arms.items()):
        for arm in _at_all_points(recipe, name, patch, axes, attack):
            fits |= dict.fromkeys((path for path, axis in axes.items() if axis in arm.point), True)
            arms.setdefault(arm.name, arm)
    for path, fit in fits.items():
        if not fit:
            _complain(recipe, path)
    return list(arms.values())


def _axes(recipe: Recipe) -> dict[str, str]:
    """Short axis names by path."""
    for path, values in recipe.grid.items():
        require(len(values) > 0, "grid", path, "a list with at least one value", values)
        distinct = len({str(value) for value in values}) == len(values)
        require(distinct, "grid", path, "a list of different values", values)
    return {path: short(path, list(recipe.grid)) for path in recipe.grid}


def short(path: str, paths: Sequence[str]) -> str:
    """The shortest end of a path that no other path has.

    Args:
        path: dotted.
        paths: all, this one included.
    """
    parts = path.split(".")
    ends = (".".join(parts[-length:]) for length in range(1, len(parts) + 1))
    return next(end for end in ends if sum(f".{other}".endswith(f".{end}") for other in paths) == 1)


def _at_all_points(
    recipe: Recipe, name: str, patch: Mapping[str, Any], axes: Mapping[str, str], attack: str
) -> Iterator[Arm]:
    about = {key: str(patch[key]) for key in ("title", "note") if patch.get(key)}
    tree = merge(recipe.line(), recipe.attacks.get(attack, {}))
    tree = merge(tree, {key: value for key, value in patch.items() if key not in ("title", "note")})
    start = {ATTACK: attack} if attack and tree.get("attack") else {}
    points: list[tuple[Mapping[str, Any], dict[str, Any]]] = [(tree, start)]
    for path, values in recipe.grid.items():
        points = [after for before in points for after in _along(before, path, axes[path], values)]
    for here, point in points:
        label = ",".join(f"{axis}={value}" for axis, value in point.items())
        yield Arm(
            name=f"{name}@{label}" if label else name,
            arm=name,
            title=f"{about.get('title', name)} ({attack})" if start else about.get("title", name),
            note=about.get("note", ""),
            point=point,
            line=validated(Line, here, f"arm {name!r}"),
        )


def _along(
    before: tuple[Mapping[str, Any], dict[str, Any]], path: str, axis: str, values: Sequence[Any]
) -> list[tuple[Mapping[str, Any], dict[str, Any]]]:
    """A point at every value of an axis; the point alone if the axis leads nowhere from there."""
    tree, point = before
    try:
        return [(assign(tree, path, value, open_keys=open_keys()), {**point, axis: value}) for value in values]
    except NoSuchPath:
        return [before]


def _complain(recipe: Recipe, path: str) -> None:
    """Raise what is wrong with an axis that fits no arm."""
    tree = merge(recipe.line(), next(iter(recipe.arms.values())))
    try:
        assign(tree, path, recipe.grid[path][0], open_keys=open_keys())
    except NoSuchPath as error:
        raise ConfigError(f"grid: {error}") from error
