# SPDX-License-Identifier: Apache-2.0
"""`moored audit-log`: read and check what a server has written down about itself."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

BROKEN = 3
"""Exit code of a log that is not what was written to it."""

Home = Annotated[Path, typer.Option(help="The server's home, or a folder that `export` wrote.")]

app = typer.Typer(help="Read and check a server's audit log.", no_args_is_help=True)


@app.command()
def verify(
    home: Home,
    key: Annotated[
        str, typer.Option(help="The public key, if not that in the home (GET /v1/moored/signing-key).")
    ] = "",
    head: Annotated[
        list[str] | None,
        typer.Option(metavar="SEQ:HASH", help="An end of the log that you kept elsewhere; repeatable."),
    ] = None,
    card: Annotated[
        list[Path] | None, typer.Option(help="A report card, which holds the end of the log of its time; repeatable.")
    ] = None,
) -> int:
    """Say whether every line is as it was written and none is missing; exit with 3 if not.

    Without --head or --card, a log that somebody with the signing key wrote anew is not told from the old one.
    """
    from moored.service import audit_log

    anchors = [_head(text) for text in head or []] + [_of_card(path) for path in card or []]
    found = audit_log.verify(home, public=key, anchors=anchors)
    if found.ok:
        typer.echo(f"{found.sentence} Keep this elsewhere: {found.head.seq}:{found.head.hash}")
        return 0
    typer.echo(found.sentence, err=True)
    return BROKEN


@app.command()
def show(
    home: Home,
    last: Annotated[int, typer.Option(min=1, help="How many entries.")] = 20,
    subject: Annotated[str, typer.Option(help="Only what was done to this job, file, model or key.")] = "",
    json: Annotated[bool, typer.Option("--json", help="As JSON lines.")] = False,
) -> None:
    """Print the newest entries, oldest of them first. It does not check them; `verify` does."""
    from collections import deque

    from moored.service.audit_log import entries
    from moored.service.signing import canonical

    chosen = (entry for entry in entries(home) if subject in ("", entry.get("subject")))
    for entry in deque(chosen, maxlen=last):
        typer.echo(canonical(entry).decode() if json else _shown(entry))


@app.command()
def export(home: Home, out: Annotated[Path, typer.Option(help="A folder; it must not hold a log.")]) -> None:
    """Copy the log, its signed head and the public key to a folder; the private key stays where it is."""
    from moored.service import audit_log

    for path in audit_log.export(home, out):
        typer.echo(f"written: {path}")


def _shown(entry: dict[str, Any]) -> str:
    from moored.service.signing import canonical

    at = datetime.fromtimestamp(entry["at"], UTC).strftime("%Y-%m-%d %H:%M:%S")
    # Canonical JSON is ASCII: nothing in it can move the cursor of a terminal.
    words = [canonical(entry[name]).decode().strip('"') for name in ("actor", "action", "subject")]
    details = canonical(entry["details"]).decode() if entry["details"] else ""
    return "  ".join([str(entry["seq"]), at, *words, details]).rstrip()


def _head(text: str) -> dict[str, Any]:
    from moored.errors import ConfigError

    seq, _, found = text.partition(":")
    if not seq.isdigit() or not found:
        raise ConfigError(f"`--head` must be SEQ:HASH, as `verify` prints it; got {text!r}")
    return {"seq": int(seq), "hash": found}


def _of_card(path: Path) -> dict[str, Any]:
    from moored.service.report_card import read_card

    return dict(read_card(path)["card"]["audit_log"])
