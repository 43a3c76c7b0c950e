# SPDX-License-Identifier: Apache-2.0
"""A policy as TOML with every default filled in, and what each key means."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

_WIDTH = 100


def explained(part: BaseModel) -> str:
    """A policy, or a part of one, as TOML that says the same.

    Args:
        part: the policy.
    """
    return "\n".join(_lines(part, ())).strip() + "\n"


def _lines(part: BaseModel, path: tuple[str, ...]) -> Iterator[str]:
    if path:
        yield ""
        yield f"[{'.'.join(map(_key, path))}]"
    tables: list[tuple[tuple[str, ...], BaseModel]] = []
    for name, field in type(part).model_fields.items():
        value = getattr(part, name)
        if isinstance(value, BaseModel) and type(value).model_fields and _is_plain(value):
            tables.append(((*path, name), value))
        elif isinstance(value, dict) and value and all(isinstance(item, BaseModel) for item in value.values()):
            tables += [((*path, name, key), item) for key, item in value.items()]
        else:
            yield from _line(name, part.model_dump(mode="json")[name], field.description or "")
    for below, table in tables:
        yield from _lines(table, below)


def _is_plain(part: BaseModel) -> bool:
    """Whether a part is written with its own fields; a method, for example, is written `{ lisa = {...} }`."""
    return set(part.model_dump(mode="json")) == set(type(part).model_fields)


def _line(name: str, value: Any, description: str) -> Iterator[str]:
    line = f"# {_key(name)} is not set" if value is None else f"{_key(name)} = {_value(value)}"
    if description and len(line) + len(description) + 4 > _WIDTH:
        yield f"# {description}"
        yield line
    else:
        yield f"{line}  # {description}" if description else line


def _key(name: str) -> str:
    bare = name.replace("_", "").replace("-", "")
    return name if bare.isascii() and bare.isalnum() else json.dumps(name)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        inside = ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items() if item is not None)
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value)  # of text, numbers and truth, TOML and JSON think alike
