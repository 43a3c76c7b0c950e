# SPDX-License-Identifier: Apache-2.0
"""`moored keys`: projects of a server, and the keys to them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from moored.cli.serve import HOME, DatabaseOption, HomeOption, require_serve, settings_of
from moored.errors import ConfigError

if TYPE_CHECKING:
    from moored.service.database import Database

Role = Literal["user", "operator", "admin"]  # as `moored.service.database` has it, which is not imported for `--help`

app = typer.Typer(no_args_is_help=True, help="Projects of a server, and the API keys to them.")


@app.command("create")
def create(
    project: Annotated[str, typer.Option(help="Whose things the key opens.")] = "default",
    role: Annotated[Role, typer.Option(help="An operator also approves and overrides; an admin may all.")] = "user",
    name: Annotated[str, typer.Option(help="To know it by.")] = "",
    home: HomeOption = HOME,
    database: DatabaseOption = "",
) -> None:
    """Make a key. It is printed this once; only its hash is kept."""
    with opened(home, database) as here:
        from moored.service.identity import make_key, project_named

        typer.echo(make_key(here, project_named(here, project).id, role=role, name=name))


@app.command("list")
def listing(home: HomeOption = HOME, database: DatabaseOption = "") -> None:
    """Show all keys, revoked ones too."""
    with opened(home, database) as here:
        from moored.service.identity import every_key

        lines = [("id", "key", "project", "role", "made", "revoked", "name")]
        for project, key in every_key(here):
            days = (_day(key.created_at), _day(key.revoked_at))
            lines.append((key.id, key.shown, project.name, key.role, *days, key.name))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


@app.command("revoke")
def revoke(
    key: Annotated[str, typer.Argument(help="The id of a key, or the key itself.")],
    home: HomeOption = HOME,
    database: DatabaseOption = "",
) -> None:
    """End a key, at once and for good."""
    with opened(home, database) as here:
        from moored.service import identity

        ended = identity.revoke(here, key)
        typer.echo(f"{ended.shown} ({ended.id}) opens nothing any more.")


@app.command("project")
def project(
    name: Annotated[str, typer.Argument(help="Of the project; made if there is none.")],
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="LIMIT=VALUE", help="A limit of its own, e.g. jobs_per_day=5; null removes it."),
    ] = None,
    home: HomeOption = HOME,
    database: DatabaseOption = "",
) -> None:
    """Make a project, or change what it may use."""
    from moored.cli.settings import parameters

    limits = parameters(sets or [])
    with opened(home, database) as here:
        from moored.service.identity import every_project, make_project, set_limits

        known = any(found.name == name for found in every_project(here))
        made = (set_limits if known else make_project)(here, name, limits)
        typer.echo(f"{made.name} ({made.id}): {_limits(made.limits)}")


@app.command("projects")
def projects(home: HomeOption = HOME, database: DatabaseOption = "") -> None:
    """Show all projects."""
    with opened(home, database) as here:
        from moored.service.identity import every_project

        for found in every_project(here):
            typer.echo(f"{found.name} ({found.id}): {_limits(found.limits)}")


@contextmanager
def opened(home: Path, database: str) -> Iterator[Database]:
    """The database of a server that was started before.

    Raises:
        ConfigError: there is none.
    """
    require_serve()
    from moored.service.database import Database
    from moored.service.migrations import upgrade

    settings = settings_of(home=home, database=database)
    if not database and not (home / "moored.sqlite").exists():
        raise ConfigError(f"there is no server in {home}; start one with `moored serve --home {home}`")
    opened = Database(settings.database_url)
    try:
        upgrade(opened)
        yield opened
    finally:
        opened.close()


def _limits(limits: dict[str, object]) -> str:
    own = ", ".join(f"{name} = {value}" for name, value in sorted(limits.items()))
    return own or "the policy's limits"


def _day(seconds: int | None) -> str:
    from datetime import UTC, datetime

    return "-" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
