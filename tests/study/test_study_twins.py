# SPDX-License-Identifier: Apache-2.0
"""Repairs in studies: rows by role, and twins, which are tuned once for all repairs that compare with them."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from moored.errors import DataError, NeedsError
from moored.study.patch import merge
from moored.study.recipe import Recipe
from moored.study.store import Store
from moored.study.study import Study

WITH: dict[str, Any] = {
    "repair_with": {
        "roles": {"harmful": "synthetic:alignment-pairs"},
        "twins": {
            "unaligned": {
                "data": [{"data": "synthetic:alignment-pairs", "limit": 8}],
                "training": {"steps": 2, "batch": 4, "lr": 1e-2},
            }
        },
    },
    "arms": {
        "resta": {"title": "RESTA", "repairs": [{"resta": {"gamma": 0.5}}]},
        "more": {"title": "More RESTA", "repairs": [{"resta": {"gamma": 1.0}}]},
        "pruned": {"title": "Antidote", "repairs": [{"antidote": {"alpha": 0.1}}]},
    },
}


@pytest.fixture
def repairing(tree: dict[str, Any]) -> dict[str, Any]:
    tree["arms"] = {}
    return merge(tree, deepcopy(WITH))


def plan(tree: dict[str, Any]) -> Any:
    return Study(Recipe.parse(tree)).plan()


def test_a_twin_is_tuned_once_and_before_the_repairs(repairing: dict[str, Any]) -> None:
    stages = plan(repairing).stages
    kinds = [stage.kind for stage in stages]
    assert kinds.count("twin") == 1
    assert kinds.count("repair") == 3
    assert kinds.index("twin") < kinds.index("repair")
    twin = stages[kinds.index("twin")]
    assert [twin in stage.parents for stage in stages if stage.kind == "repair"] == [True, True, False]
    assert [stage.roles.keys() for stage in stages if stage.kind == "repair"] == [set(), set(), {"harmful"}]


@pytest.mark.parametrize(
    ("change", "touched"),
    [
        ({"twins": {"unaligned": {"training": {"lr": 1e-3}}}}, [True, True, False]),
        ({"roles": {"harmful": {"data": "synthetic:alignment-pairs", "limit": 8}}}, [False, False, True]),
    ],
)
def test_what_a_repair_looks_at_is_in_its_key(
    repairing: dict[str, Any], change: dict[str, Any], touched: list[bool]
) -> None:
    def keys(tree: dict[str, Any]) -> list[str]:
        return [stage.key for stage in plan(tree).stages if stage.kind == "repair"]

    after = keys(merge(repairing, {"repair_with": change}))
    assert [a != b for a, b in zip(keys(repairing), after, strict=True)] == touched


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ({"twins": None}, "RESTA needs the twin `unaligned`; add `twins: {unaligned: "),
        ({"roles": None}, "Antidote needs `harmful` data; add `roles: {harmful: <data>}` to `repair_with`"),
    ],
)
def test_what_is_missing_is_said(repairing: dict[str, Any], missing: dict[str, Any], said: str) -> None:
    with pytest.raises(NeedsError) as caught:
        plan(merge(repairing, {"repair_with": missing}))
    assert said in str(caught.value)


@pytest.mark.parametrize("part", ["roles", "twins"])
def test_prompts_that_repairs_look_at_are_not_asked(repairing: dict[str, Any], tmp_path: Path, part: str) -> None:
    rows = [{"prompt": f"Request {i}!", "answer": "Sure."} for i in range(8)]
    same = tmp_path / "same.jsonl"
    same.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"roles": {"harmful": str(same)}} if part == "roles" else {"twins": {"unaligned": {"data": [str(same)]}}}
    asked = merge(repairing, {"tasks": {"harmful_requests": {"data": str(same)}}})
    with pytest.raises(DataError, match=rf"also in `repair_with\.{part}\."):
        plan(merge(asked, {"repair_with": given}))


def test_repairs_run_with_what_they_need(repairing: dict[str, Any], store: Store) -> None:
    small = {"model": "tiny", "align": None, "base": None, "tasks": {"utility": None}}
    small |= {"attack": {"harmful_mix": {"n": 8, "ratio": 0.25}}}
    record = Study(Recipe.parse(merge(repairing, small))).run(store)
    changed = {arm.name: arm.repairs[0].changed for arm in record.arms if arm.repairs}
    assert changed.keys() == {"resta", "more", "pruned"}
    assert all(changed.values()), changed
    assert any("tune the unaligned twin on 8 rows" in step for step in record.arm("resta").chain)
