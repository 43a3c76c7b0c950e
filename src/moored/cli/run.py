# SPDX-License-Identifier: Apache-2.0
"""`moored run`: a study from a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moored.cli.launching import LauncherOptions

if TYPE_CHECKING:
    from moored.service.launchers.base import Launcher


def run(
    recipe: Annotated[
        str, typer.Argument(help="A YAML file, or a packaged recipe: demo, catalogue, harmful_ratio ...")
    ],
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="PATH=VALUE",
            help="Change a field, e.g. finetune.training.lr=1e-4; repeatable. null removes.",
        ),
    ] = None,
    profiles: Annotated[
        list[str] | None,
        typer.Option(
            "--profile",
            metavar="NAME",
            help="A profile of the recipe, e.g. tiny (a random toy model, under a minute); repeatable, in this order.",
        ),
    ] = None,
    arms: Annotated[
        list[str] | None, typer.Option("--arm", metavar="NAME", help="Run only this arm of the recipe; repeatable.")
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="Folder of finished stages, shared by studies. [default: OUT/store]")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for <name>.json and <name>.html.")] = Path("runs"),
    launcher: Annotated[
        str, typer.Option(help="Run each row of the table by itself: local, ray or slurm. [default: all here]")
    ] = "",
    launcher_options: LauncherOptions = None,
    slots: Annotated[int, typer.Option(min=1, help="Rows at a time, of the launcher local.")] = 2,
) -> int:
    """Run a recipe: align, attack, fine-tune, repair, judge; prints a table and writes a report.

    Finished stages are reused: run the same command again to resume, or change a field and only what depends on it
    runs. Two processes may share a store.

    With --launcher the rows of the table run beside each other, on this machine, a Ray cluster or Slurm, on one store
    that all machines see by the same name; what comes of it is the same. See docs/service.md.
    """
    from moored.cli.studies import run_study
    from moored.service.launchers.named import launcher_named, options_of
    from moored.study.recipe import Recipe
    from moored.study.store import Store

    options = options_of(launcher_options or [])

    def where(opened: Store) -> Launcher:
        return launcher_named(launcher, options, slots=slots, folder=opened.root / "rows" / "slots")

    loaded = Recipe.load(recipe, sets=sets or [], profile=profiles, arms=arms or [])
    return run_study(loaded, out=out, store=store, where=where if launcher else None)
