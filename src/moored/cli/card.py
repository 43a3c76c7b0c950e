# SPDX-License-Identifier: Apache-2.0
"""`moored card`: check a job's signed report card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

FORGED = 3
"""Exit code of a card that is not as it was signed."""

app = typer.Typer(help="Check the signed report cards of a server.", no_args_is_help=True)


@app.callback()
def _cards() -> None:
    """Keeps `verify` a command of its own while there is only one."""


@app.command()
def verify(
    card: Annotated[Path, typer.Argument(help="A card.json.")],
    key: Annotated[str, typer.Option(help="The public key that you trust, in base64.")] = "",
    home: Annotated[Path | None, typer.Option(help="Instead: the home of the server, on its machine.")] = None,
) -> int:
    """Say whether a card is as the server signed it, and what it says; exit with 3 if it is not.

    Take the key from the operator, or once from GET /v1/moored/signing-key over a connection that you trust; the one in
    the card proves nothing.
    """
    from moored.errors import ConfigError
    from moored.service.card_page import moment, standing
    from moored.service.report_card import read_card, verify_card
    from moored.service.signing import KEY, SigningKey, key_id

    if bool(key) == (home is not None):
        raise ConfigError("say which key to trust: `--key`, or on the server's machine `--home`")
    if home is not None and not (home / KEY).is_file():
        raise ConfigError(f"{home} has no {KEY}: is it the home of a server?")
    public = key or SigningKey.of(Path(str(home))).public
    signed = read_card(card)
    if not verify_card(signed, public):
        typer.echo(f"This card is not what the key {key_id(public)} signed.", err=True)
        return FORGED
    found = signed["card"]
    typer.echo(f"Signed by the key {key_id(public)} on {moment(found['signed_at'])}.")
    typer.echo(f"{found['job']['id']}: {standing(found)[0]}.")
    if found["decision"]:
        typer.echo(found["decision"]["sentence"])
    if found["weights"]:
        typer.echo(f"Holds for the weights {found['weights']['sha256']} and no others.")
    return 0
