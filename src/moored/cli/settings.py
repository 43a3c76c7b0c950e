# SPDX-License-Identifier: Apache-2.0
"""`--set name=value` for one method's parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moored.errors import ConfigError


def parameters(sets: Sequence[str]) -> dict[str, Any]:
    """Parameters by name, values read as YAML.

    Args:
        sets: for example `["tau=0.5", "k=120"]`.

    Raises:
        ConfigError: not `name=value`, or a name that stands twice.
    """
    from moored.study.text import parse_value

    given: dict[str, Any] = {}
    for text in sets:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"--set {text!r} must look like `tau=0.5`")
        if name.strip() in given:
            raise ConfigError(f"--set {name.strip()} is given twice; keep one")
        given[name.strip()] = parse_value(value, f"--set {text}")
    return given
