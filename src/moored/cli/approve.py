# SPDX-License-Identifier: Apache-2.0
"""`moored approve`: decide, on the server's machine, about a model that waits for a person or was refused."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from moored.service.settings import ServerSettings


def approve(
    job: Annotated[str, typer.Argument(help="The id of a fine-tuning job, ftjob-...")],
    home: Annotated[Path, typer.Option(help="The server's home.")],
    reason: Annotated[str, typer.Option(help="For the audit log and the report card, which the user reads.")] = "",
    refuse: Annotated[bool, typer.Option("--refuse", help="Refuse a model that waits.")] = False,
    override: Annotated[
        bool, typer.Option("--override", help="Serve a model that was refused; needs a --reason.")
    ] = False,
    sha256: Annotated[
        str, typer.Option(help="The weights that you mean, as the card shows them, instead of being asked.")
    ] = "",
    database: Annotated[str, typer.Option(help="The database's URL, if it is not in the home.")] = "",
) -> None:
    """Show what was measured of a model, ask, and let it be served (or refuse it).

    The audit log and the report card name you by your account on this machine.
    """
    from moored.errors import ConfigError
    from moored.service.approvals import Offices
    from moored.service.database import Database
    from moored.service.problems import ApiProblem
    from moored.service.settings import ServerSettings

    if refuse and override:
        raise ConfigError("`--refuse` and `--override` are opposites; give one")
    settings = ServerSettings(home=home, database=database)
    if not settings.database and not (home / "moored.sqlite").is_file():
        raise ConfigError(f"{home} has no database: is it the home of a server? Else give `--database`")
    what = "override" if override else "refuse" if refuse else "approve"
    tables = Database(settings.database_url)
    try:
        offices, caller = Offices(settings=settings, database=tables), _this_person()
        shown = offices.shown(job, caller).sha256
        _show(settings, job, shown)
        if not sha256:
            typer.confirm(f"{what.capitalize()} these weights?", abort=True)
        model = getattr(offices, what)(job, caller, sha256=sha256 or shown, reason=reason)
    except ApiProblem as problem:
        raise ConfigError(problem.message) from problem
    finally:
        tables.close()
    typer.echo(f"{model.id}: {model.state}, by {caller.key_id}")


def _this_person() -> Any:
    """Whoever runs this has the server's files, which is more than any key gives."""
    import os
    import pwd

    from moored.service.approvals import ON_THE_MACHINE
    from moored.service.identity import Caller

    name = pwd.getpwuid(os.getuid()).pw_name  # not from the environment, which anybody can set
    return Caller(key_id=f"{ON_THE_MACHINE}{name}", project_id="", role="admin")


def _show(settings: ServerSettings, job: str, sha256: str) -> None:
    from moored.errors import DataError
    from moored.service.card_page import standing
    from moored.service.report_card import CARD, read_card, verify_card
    from moored.service.signing import SigningKey

    signed = read_card(settings.job(job) / CARD)
    if not verify_card(signed, SigningKey.of(settings.home).public):
        raise DataError(f"the report card of {job} is not as this server signed it; nothing can be decided by it")
    typer.echo(f"{job}: {standing(signed['card'])[0]}")
    if signed["card"]["decision"]:
        typer.echo(signed["card"]["decision"]["sentence"])
    typer.echo(f"Weights: {sha256}")
    typer.echo(f"The page: {settings.job(job) / 'card.html'}")
