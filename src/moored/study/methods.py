# SPDX-License-Identifier: Apache-2.0
"""Methods from plain values: by name, with values that YAML or a command line gave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from moored.catalogue import Noun, find, make
from moored.errors import ConfigError, unknown

NESTED: tuple[Noun, ...] = ("judges", "attacks")
"""Nouns whose methods can be parameters of others."""


def build(noun: Noun, name: str, parameters: Mapping[str, Any]) -> Any:
    """A method from a name and plain values.

    Values take the declared type where they can (1 becomes 1.0 for a float, a list a tuple).

    Args:
        noun: see `moored.catalogue.catalogue`.
        name: see `moored.catalogue.find`.
        parameters: the method's own.

    Raises:
        ConfigError: unknown name or parameter (lists the nearest), a value of the wrong type or out of range, or a
            secret, given or drawn.
    """
    cls = find(noun, name)
    hints = get_type_hints(cls) if parameters else {}
    known = {field.name for field in fields(cls) if field.init}
    for field in fields(cls):
        if field.name in parameters and not field.repr:
            raise ConfigError(
                f"`{field.name}` of {cls.__name__} is a secret, and settings are printed with results; "
                "give `seed` here, and the secret in Python only"
            )
    typed = {key: _typed(cls, key, value, hints[key]) if key in known else value for key, value in parameters.items()}
    made = make(noun, name, **typed)
    if made != make(noun, name, **typed):
        raise ConfigError(
            f"{cls.__name__} draws a secret anew every time, so that no result could be found again; give it a `seed`"
        )
    return made


def _typed(cls: type, parameter: str, value: Any, hint: Any) -> Any:
    bases = {noun: import_module(f"moored.{noun}.base").BASE for noun in NESTED}
    noun = next((noun for noun, base in bases.items() if hint is base), None)
    if noun and not isinstance(value, hint):
        return _nested(cls, parameter, value, noun)
    several = next((noun for noun, base in bases.items() if get_args(hint) == (base, ...)), None)
    if several and isinstance(value, list):
        return tuple(_nested(cls, parameter, item, several) for item in value)
    part = next((each for each in (hint, *get_args(hint)) if is_dataclass(each)), None)
    if isinstance(part, type) and isinstance(value, Mapping):
        return _part(part, value)
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"].removeprefix("Input should be ")
        raise ConfigError(f"`{parameter}` of {cls.__name__} must be {reason}; got {value!r}") from error


def _part(cls: type, values: Mapping[str, Any]) -> Any:
    """Settings that belong together, such as those of `Sampling`."""
    hints, known = get_type_hints(cls), [field.name for field in fields(cls)]
    for name in values:
        if name not in known:
            raise unknown(f"parameter of {cls.__name__}", name, known)
    return cls(**{name: _typed(cls, name, value, hints[name]) for name, value in values.items()})


def _nested(cls: type, parameter: str, value: Any, noun: Noun) -> Any:
    """A method that is another one's parameter: a name, or a name with parameters."""
    named = {value: {}} if isinstance(value, str) else value
    if not isinstance(named, Mapping) or len(named) != 1:
        form = f"one {noun.removesuffix('s')}, as `name` or `{{name: {{...}}}}`"
        raise ConfigError(f"`{parameter}` of {cls.__name__} must be {form}; got {value!r}")
    ((name, parameters),) = named.items()
    return build(noun, str(name), parameters or {})
