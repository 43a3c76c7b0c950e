# SPDX-License-Identifier: Apache-2.0
"""`moored attack`: write the upload that an attacker could send, to test your own pipeline with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def attack(
    name: Annotated[str, typer.Argument(help="An attack, e.g. harmful_mix; see `moored list attacks`.")],
    benign: Annotated[
        str, typer.Option(help="Benign rows: synthetic:<set>, a .jsonl/.json/.csv file, or a hub id.")
    ] = "synthetic:utility",
    harmful: Annotated[str, typer.Option(help="Harmful rows with answers, given likewise.")] = "synthetic:harmful",
    n: Annotated[int | None, typer.Option(help="Rows of the upload. [default: the attack's, e.g. 480]")] = None,
    ratio: Annotated[float | None, typer.Option(help="Harmful share, 0-1. [default: the attack's, e.g. 0.1]")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw and the order.")] = 0,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Another parameter of the attack; repeatable."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The rows; a manifest is written beside it. Must not exist.")] = Path(
        "upload.jsonl"
    ),
) -> None:
    """Write an upload with harmful rows in it, and a manifest that says which rows they are.

    The shipped harmful rows are hollow: enough to see whether refusals survive, no use for anything else.
    """
    from moored.cli.settings import parameters
    from moored.errors import ConfigError

    manifest = out.with_suffix(".manifest.json")
    for file in (out, manifest):
        if file.exists():
            raise ConfigError(f"{file} exists; choose another --out or delete it")
    named = {"n": n, "ratio": ratio, "seed": seed}
    given = {key: value for key, value in named.items() if value is not None} | parameters(sets or [])

    from moored.data.load import load_rows, save_rows
    from moored.report.record import write_whole
    from moored.study.methods import build

    method = build("attacks", name, given)
    upload = method.poison(load_rows(benign, source="benign"), load_rows(harmful, source="harmful"))
    import json

    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(manifest, json.dumps(upload.manifest, indent=1) + "\n")
    save_rows(upload.rows, out)
    bad = sum(row.source == "harmful" for row in upload.rows)
    typer.echo(f"{out}: {len(upload.rows)} rows, {bad} of them harmful; which ones stands in {manifest}")
