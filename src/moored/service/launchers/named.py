# SPDX-License-Identifier: Apache-2.0
"""A launcher by its name, with its options as an operator writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Literal, get_args

from moored.errors import ConfigError, unknown
from moored.service.launchers.base import Launcher
from moored.study.recipe import validated

LauncherName = Literal["local", "ray", "slurm"]
"""The module of this folder that holds `Options` and `launcher`."""


def launcher_named(name: str, options: Mapping[str, str], *, slots: int, folder: Path) -> Launcher:
    """The launcher of a name; nothing is asked of it yet.

    Args:
        name: of its module.
        options: by name; see the module's `Options`.
        slots: commands at a time, where nobody else counts them.
        folder: for what a launcher keeps for itself.

    Raises:
        ConfigError: no such launcher, an option that it does not have, or a value that cannot be.
    """
    if name not in get_args(LauncherName):
        raise unknown("launcher", name, get_args(LauncherName))
    module = import_module(f"moored.service.launchers.{name}")
    known = validated(module.Options, options, f"--launcher-option, of {name!r}")
    made: Launcher = module.launcher(known, slots=slots, folder=folder)
    return made


def options_of(pairs: Sequence[str]) -> dict[str, str]:
    """Options from `name=value`.

    Args:
        pairs: for example `["gpus=1", "partition=a100"]`.

    Raises:
        ConfigError: one that is no pair, or a name that stands twice.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"--launcher-option {pair!r} must look like `gpus=1`")
        if name.strip() in found:
            raise ConfigError(f"--launcher-option {name.strip()} is given twice; keep one")
        found[name.strip()] = value.strip()
    return found
