# SPDX-License-Identifier: Apache-2.0
"""Changing nested plain values: merge patches (RFC 7396) and dotted paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moored.errors import ConfigError, unknown


class NoSuchPath(ConfigError):
    """A dotted path leads through a list element or a mapping key that is not there."""


def merge(base: Any, patch: Any) -> Any:
    """`base` changed by a JSON merge patch: mappings merge, null removes a key, all else replaces.

    Example:
        >>> merge({"a": 1, "b": {"c": 2, "d": 3}}, {"a": None, "b": {"c": 4}})
        {'b': {'c': 4, 'd': 3}}
    """
    if not isinstance(patch, Mapping):
        return patch
    merged = dict(base) if isinstance(base, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value)
    return merged


def assign(tree: Any, path: str, value: Any, *, open_keys: Mapping[str, Sequence[str]]) -> Any:
    """A copy of `tree` in which the dotted `path` holds `value`; None removes what was there.

    A part of the path is a key of a mapping, a position in a list, or, in a list of methods such as
    `[{lisa: {rho: 1}}]`, a method's name. The last key may be new where keys are free; those before it exist.

    Args:
        tree: mappings, lists and scalars; not changed.
        path: for example `finetune.training.lr` or `repairs.safe_lora.fraction`.
        value: what to put there.
        open_keys: all keys of the mappings whose keys are fixed, by dotted path ("" is the root).

    Raises:
        NoSuchPath: a part does not exist; lists the nearest names.
    """
    return _assign(tree, tuple(path.split(".")), (), value, open_keys)


def leads(tree: Any, path: str, *, open_keys: Mapping[str, Sequence[str]]) -> bool:
    """Whether `assign` finds a place for a value.

    Args:
        tree: see `assign`.
        path: see `assign`.
        open_keys: see `assign`.
    """
    try:
        assign(tree, path, 0, open_keys=open_keys)
    except NoSuchPath:
        return False
    return True


def _assign(
    tree: Any,
    rest: tuple[str, ...],
    done: tuple[str, ...],
    value: Any,
    open_keys: Mapping[str, Sequence[str]],
) -> Any:
    if not rest:
        return value
    if isinstance(tree, list):
        return _in_list(tree, rest, done, value, open_keys)
    if tree is not None and not isinstance(tree, Mapping):
        raise NoSuchPath(f"`{'.'.join((*done, *rest))}` leads into `{'.'.join(done)}`, which is the value {tree!r}")
    part, *below = rest
    here, mapping = ".".join(done), dict(tree or {})
    known = list(dict.fromkeys([*mapping, *open_keys.get(here, ())]))
    if part not in known and (below or here in open_keys):
        raise NoSuchPath(str(unknown(f"key of `{here}`" if done else "key", part, known)))
    changed = _assign(mapping.pop(part, None), tuple(below), (*done, part), value, open_keys)
    return mapping if changed is None else {**mapping, part: changed}


def _in_list(
    items: list[Any],
    rest: tuple[str, ...],
    done: tuple[str, ...],
    value: Any,
    open_keys: Mapping[str, Sequence[str]],
) -> list[Any]:
    """`_assign` for a list; the part is a position, or the name of a method."""
    part, *below = rest
    names = [next(iter(item)) if isinstance(item, Mapping) and item else str(item) for item in items]
    by_name = part in names
    if not by_name and not (part.isdigit() and int(part) < len(items)):
        raise NoSuchPath(str(unknown(f"entry of `{'.'.join(done)}`", part, names or ["(none)"])))
    position = names.index(part) if by_name else int(part)
    item = items[position]
    child = (item[part] if isinstance(item, Mapping) else {}) if by_name else item
    changed = _assign(child, tuple(below), (*done, part), value, open_keys)
    kept = [] if changed is None else [{part: changed} if by_name else changed]
    return [*items[:position], *kept, *items[position + 1 :]]
