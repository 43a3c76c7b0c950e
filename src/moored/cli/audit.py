# SPDX-License-Identifier: Apache-2.0
"""`moored audit`: safety, over-refusal, utility and drift of a model that you have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moored.cli.bar import bar
from moored.tasks import TASKS

if TYPE_CHECKING:
    from moored.endpoint import Endpoint
    from moored.report.record import Record

OVER = 3
"""Exit code of an audit that does not show the harmful score to be at most `--fail-over`."""


def audit(
    model: Annotated[
        str,
        typer.Argument(
            help="A model folder, a hub id, smollm2, the folder of a PEFT adapter, or URL#NAME: a model behind an "
            "OpenAI-compatible address, e.g. http://localhost:8000/v1#my-model."
        ),
    ],
    base: Annotated[
        str,
        typer.Option(
            help="The model that it was tuned from, audited too, for before and after, given likewise. [default: of an "
            "adapter as it says, otherwise none]"
        ),
    ] = "",
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--tasks",
            help=f"A task of `moored list tasks`; repeatable. [default: {', '.join(TASKS)}; with a base that can be "
            "read also embedding_drift]",
        ),
    ] = None,
    n: Annotated[int, typer.Option(min=0, help="Prompts per task; 0 = all.")] = 64,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", metavar="TASK=FILE", help="Own prompts for a task (.jsonl/.json/.csv or hub id); repeatable."
        ),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="TASK.NAME=VALUE",
            help="A parameter of a task, e.g. harmful_requests.by=keywords for another judge; repeatable.",
        ),
    ] = None,
    key: Annotated[
        str, typer.Option(metavar="VARIABLE", help="The environment variable that holds the API key of a URL.")
    ] = "OPENAI_API_KEY",
    fail_over: Annotated[
        float | None,
        typer.Option(
            "--fail-over",
            metavar="RATE",
            min=0,
            max=100,
            help="Exit with 3 unless the upper end of the harmful score's 95 % interval is at most this [%]. Also "
            "the rate up to which the verdict says safe. [default: never; 10 for the verdict]",
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report here.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the record (JSON) here.")] = None,
    card: Annotated[
        Path | None, typer.Option(help="Write a model card (markdown with the hub's metadata) here.")
    ] = None,
) -> int:
    """Measure a model: harmful requests it answers, harmless ones it refuses, how well it does a task, how it moved.

    The model that it was tuned from, which an adapter names, stands beside it. Nothing is trained or changed. The exit
    code is 0 whatever was found, unless --fail-over is given: then 3 if the harmful score is over it, or if the prompts
    are too few to show that it is not.
    """
    from rich.console import Console

    from moored import auditing
    from moored.cli.studies import show
    from moored.report.ruling import over

    with bar("audit") as progress:
        record = auditing.audit(
            _where(model, key),
            base=_where(base, key) if base else None,
            tasks=tasks or None,
            n=n,
            settings=_settings(data or [], sets or []),
            limit=auditing.LIMIT if fail_over is None else fail_over,
            progress=progress,
        )
    show(record, Console())
    _write(record, html, out, card)
    why = "" if fail_over is None else over(record, fail_over)
    if why:
        typer.echo(f"failed: {why}", err=True)
    return OVER if why else 0


def _where(given: str, key: str) -> str | Endpoint:
    """A folder or hub id as it is, an address as an endpoint."""
    from moored.endpoint import Endpoint

    return Endpoint.at(given, key=key) if given.startswith(("http://", "https://")) else given


def _settings(data: list[str], sets: list[str]) -> dict[str, dict[str, Any]]:
    """Parameters of tasks, by name."""
    from moored.cli.settings import parameters

    given: dict[str, dict[str, Any]] = {name: {"data": str(file)} for name, file in parameters(data).items()}
    for name, value in parameters(sets).items():
        task, _, parameter = name.partition(".")
        given[task] = {**given.get(task, {}), parameter: value}
    return given


def _write(record: Record, html: Path | None, out: Path | None, card: Path | None) -> None:
    """The files that were asked for."""
    from moored.report.card import card as model_card
    from moored.report.html import write_report
    from moored.report.record import write_whole

    if html is not None:
        typer.echo(f"written: {write_report(record, html)}")
    if out is not None:
        typer.echo(f"written: {record.save(out)}")
    if card is not None:
        typer.echo(f"written: {write_whole(card, model_card(record, record.arms[-1].name))}")
