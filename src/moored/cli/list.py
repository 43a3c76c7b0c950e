# SPDX-License-Identifier: Apache-2.0
"""`moored list`: what there is."""

from __future__ import annotations

from typing import Annotated, Any, get_args

import typer


def list_methods(
    noun: Annotated[
        str,
        typer.Argument(
            help="defenses, repairs, attacks, judges, metrics, tasks, datasets or recipes; all if left out."
        ),
    ] = "",
) -> None:
    """List methods, tasks, judges and recipes, with stage, needs, cost and paper (first author, venue, arXiv)."""
    from rich.console import Console

    from moored.catalogue import Noun, catalogue
    from moored.errors import unknown

    nouns = [*get_args(Noun), "recipes"]
    if noun and noun not in nouns:
        raise unknown("noun", noun, nouns)
    console = Console()
    for name in [noun] if noun else nouns:
        console.print(_recipes() if name == "recipes" else _table(name, catalogue(name)))
        console.print()


def _table(noun: str, classes: dict[str, type]) -> Any:
    if noun == "datasets":
        return _datasets(classes)
    published = any(hasattr(cls, "info") for cls in classes.values())
    columns = ("stage, needs", "cost", "paper") if published else ("what it does",)
    table = _grid(noun, columns)
    for name, cls in classes.items():
        table.add_row(name, *(_published(cls) if published else (_first_line(cls),)))
    return table


def _published(cls: Any) -> tuple[str, ...]:
    info = cls.info
    paper = f"{info.authors.partition(',')[0]}\n{info.when}\n{info.arxiv}" if info.arxiv else "baseline"
    needs = ", ".join(sorted(info.needs))
    return f"{info.stage}\n{needs}" if needs else info.stage, info.cost, paper


def _datasets(classes: dict[str, Any]) -> Any:
    table = _grid("datasets", ("what it is", "parts", "licence", "hub"))
    for name, cls in classes.items():
        gated = " (gated)" if cls.gated else ""
        table.add_row(name, _first_line(cls), ", ".join(cls.parts), cls.licence, cls.hub + gated)
    return table


def _recipes() -> Any:
    from moored.study.recipe import Recipe, packaged

    table = _grid("recipes", ("title",))
    for name, path in packaged().items():
        table.add_row(name, Recipe.load(path).title)
    return table


def _grid(title: str, columns: tuple[str, ...]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False)
    for column in ("name", *columns):
        table.add_column(column, no_wrap=column == "name")
    return table


def _first_line(cls: type) -> str:
    return (cls.__doc__ or "").strip().split("\n", maxsplit=1)[0]
