# SPDX-License-Identifier: Apache-2.0
"""What of a study its user may read: no path of the server's machine, and no seed from which a secret was drawn."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from pathlib import PurePath
from typing import Any

from moored.catalogue import catalogue

HIDDEN = "(kept from users)"
_PATH = re.compile(r"(?<![\w:/.-])/(?:[^\s/'\",;:)\]}]+/)+([^\s/'\",;:)\]}]*)")
_SEED = re.compile(r"\bseed=\d+")


def redacted(value: Any) -> Any:
    """Plain JSON with paths cut to their last part and the seeds of secrets taken out.

    BEA draws its trigger from its seed: who knows the seed can write rows behind the trigger.

    Args:
        value: of a recipe, a policy, or parts of a record.
    """
    return _cleared(value, _has_secret(value))


def _cleared(value: Any, secret: bool) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _inner(str(name), inner, secret) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_cleared(inner, secret) for inner in value]
    if isinstance(value, str):
        text = _PATH.sub(lambda found: found[1] or PurePath(found[0]).name, value)
        return _SEED.sub(f"seed={HIDDEN}", text) if secret else text
    return value


def _inner(name: str, value: Any, secret: bool) -> Any:
    if _spelling(name) in _secretive() and isinstance(value, Mapping):
        value = {key: HIDDEN if key == "seed" else inner for key, inner in value.items()}
    return _cleared(value, secret)


def _has_secret(value: Any) -> bool:
    """Whether a method that draws a secret is named anywhere."""
    if isinstance(value, Mapping):
        return any(_spelling(str(name)) in _secretive() or _has_secret(inner) for name, inner in value.items())
    if isinstance(value, list | tuple):
        return any(_has_secret(inner) for inner in value)
    return isinstance(value, str) and any(word in _secretive() for word in map(_spelling, re.findall(r"\w+", value)))


@cache
def _secretive() -> frozenset[str]:
    """Defences with a field that is not shown."""
    return frozenset(
        _spelling(name) for name, cls in catalogue("defenses").items() if any(not field.repr for field in fields(cls))
    )


def _spelling(name: str) -> str:
    return name.lower().replace("_", "")
