# SPDX-License-Identifier: Apache-2.0
"""`moored import`: results of inspect-ai and lm-eval as a record."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def import_results(
    results: Annotated[
        list[Path], typer.Argument(help="Logs of inspect-ai (.eval, .json) and results_*.json of lm-eval.")
    ],
    out: Annotated[Path | None, typer.Option(help="Write the record (JSON) here, for `moored compare`.")] = None,
    name: Annotated[
        str, typer.Option(help="What the model is called in the record. [default: as the results name it]")
    ] = "",
    role: Annotated[
        str,
        typer.Option(help="What a task of inspect-ai that is not ours measures: safety, over-refusal or utility."),
    ] = "utility",
    better: Annotated[str, typer.Option(help="Which direction is good in it: higher or lower.")] = "higher",
) -> None:
    """Read what inspect-ai or lm-eval measured, and show it as our own: with intervals, prompt by prompt.

    Several files make one record: tasks side by side, and a row for every model. Our own tasks run under inspect-ai as
    `inspect eval moored/harmful_requests --model ...`.
    """
    from rich.console import Console

    from moored.cli.studies import show
    from moored.errors import unknown
    from moored.interop.records import merged, named, read

    foreign: dict[str, Any] = {"role": role, "better": better}
    for option, known in (("role", ("safety", "over-refusal", "utility")), ("better", ("higher", "lower"))):
        if foreign[option] not in known:
            raise unknown(f"value of --{option}", foreign[option], known)
    records = [read(path, **foreign) for path in results]
    record = merged([named(each, name) if name else each for each in records])
    show(record, Console())
    if out is not None:
        typer.echo(f"written: {record.save(out)}")
