# SPDX-License-Identifier: Apache-2.0
"""Merge patches against the table of RFC 7396, and dotted paths."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from moored.study.patch import NoSuchPath, assign, merge

RFC_7396 = [  # appendix A
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    (["a", "b"], ["c", "d"], ["c", "d"]),
    ({"a": "b"}, ["c"], ["c"]),
    ({"a": "foo"}, None, None),
    ({"a": "foo"}, "bar", "bar"),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]


@pytest.mark.parametrize(("base", "patch", "result"), RFC_7396)
def test_the_table_of_the_rfc(base: Any, patch: Any, result: Any) -> None:
    before = deepcopy(base)
    assert merge(base, patch) == result
    assert base == before


@pytest.mark.parametrize(
    ("path", "value", "result"),
    [
        ("a.b", 2, {"a": {"b": 2}, "m": [{"x": {"p": 1}}, "y"]}),
        ("a.new", 2, {"a": {"b": 1, "new": 2}, "m": [{"x": {"p": 1}}, "y"]}),
        ("m.x.p", 2, {"a": {"b": 1}, "m": [{"x": {"p": 2}}, "y"]}),
        ("m.0.x.p", 2, {"a": {"b": 1}, "m": [{"x": {"p": 2}}, "y"]}),
        ("m.y.q", 2, {"a": {"b": 1}, "m": [{"x": {"p": 1}}, {"y": {"q": 2}}]}),
        ("m.1", "z", {"a": {"b": 1}, "m": [{"x": {"p": 1}}, "z"]}),
        ("a.b", None, {"a": {}, "m": [{"x": {"p": 1}}, "y"]}),
        ("m.x", None, {"a": {"b": 1}, "m": ["y"]}),
    ],
)
def test_assign(path: str, value: Any, result: Any) -> None:
    tree = {"a": {"b": 1}, "m": [{"x": {"p": 1}}, "y"]}
    before = deepcopy(tree)
    assert assign(tree, path, value, open_keys={}) == result
    assert tree == before


@pytest.mark.parametrize("path", ["n.b", "a.c.d", "m.z.p", "m.5", "m.-1", "a.b.c"])
def test_a_path_that_is_not_there(path: str) -> None:
    with pytest.raises(NoSuchPath):
        assign({"a": {"b": 1}, "m": [{"x": {"p": 1}}]}, path, 1, open_keys={"": ["a", "m"]})
