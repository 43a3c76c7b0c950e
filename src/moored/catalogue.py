# SPDX-License-Identifier: Apache-2.0
"""Names to classes: the files of a noun's folder, plus entry points. There is no table to edit.

A class is in the catalogue of its noun when it stands in a module of the noun's folder, subclasses the noun's
base, and carries a `name` of its own (`info.name` for published methods). Third parties add to the same
catalogue with an entry point in the group `moored.<noun>`, for example::

    [project.entry-points."moored.defenses"]
    my_defense = "my_package.my_defense:MyDefense"
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import Any, Literal

from moored.errors import ConfigError, unknown

Noun = Literal["defenses", "repairs", "attacks", "judges", "metrics", "tasks", "datasets"]


@cache
def catalogue(noun: Noun) -> dict[str, type]:
    """All classes of a noun by name, in alphabetical order.

    Args:
        noun: the folder: "defenses", "repairs", "attacks", "judges", "metrics", "tasks" or "datasets".
    """
    found = in_folder(f"moored.{noun}")
    for point in entry_points(group=f"moored.{noun}"):
        found |= _named(point.load())
    return dict(sorted(found.items()))


def in_folder(package: str) -> dict[str, type]:
    """The classes that stand in a package's modules, subclass `BASE` of its `base` and name themselves.

    Args:
        package: for example "moored.service.screening".
    """
    base = import_module(f"{package}.base").BASE
    found: dict[str, type] = {}
    for module_info in iter_modules(import_module(package).__path__):
        module = import_module(f"{package}.{module_info.name}")
        for thing in vars(module).values():
            if isinstance(thing, type) and issubclass(thing, base) and thing.__module__ == module.__name__:
                found |= _named(thing)
    return found


def _named(cls: type) -> dict[str, type]:
    """`{name: cls}` if the class names itself, else nothing (abstract bases)."""
    own = vars(cls)
    info = own.get("info")
    name = info.name if info is not None else own.get("name")
    return {name: cls} if isinstance(name, str) else {}


def find(noun: Noun, name: str) -> type:
    """The class called `name`; also accepts the class name and dashes (`SafeLoRA`, `safe-lora`).

    Raises:
        ConfigError: no such name; lists the nearest three.
    """
    known = catalogue(noun)
    by_class = {cls.__name__.lower(): cls for cls in known.values()}
    by_spelling = by_class | {key.replace("_", ""): cls for key, cls in known.items()}
    wanted = name.lower().replace("-", "").replace("_", "")
    if wanted not in by_spelling:
        raise unknown(noun.removesuffix("s"), name, known)
    return by_spelling[wanted]


def make(noun: Noun, name: str, **parameters: Any) -> Any:
    """Build a method by name.

    Args:
        noun: see `catalogue`.
        name: see `find`.
        parameters: the method's own parameters.

    Raises:
        ConfigError: unknown name, unknown parameter (lists the nearest), one that is missing, or a bad value.
    """
    cls = find(noun, name)
    known = [f.name for f in fields(cls) if f.init]
    for parameter in parameters:
        if parameter not in known:
            raise unknown(f"parameter of {cls.__name__}", parameter, known)
    needed = [f.name for f in fields(cls) if f.init and f.default is MISSING and f.default_factory is MISSING]
    if missing := [f"`{name}`" for name in needed if name not in parameters]:
        raise ConfigError(f"{cls.__name__} needs {' and '.join(missing)}")
    try:
        return cls(**parameters)
    except TypeError as error:
        raise ConfigError(f"{cls.__name__}: {error}") from error
