# SPDX-License-Identifier: Apache-2.0
"""`moored audit`: safety, over-refusal and utility of a model that you have."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moored.cli.bar import bar
from moored.tasks import TASKS

if TYPE_CHECKING:
    from moored.report.record import Arm, Record
    from moored.tasks.base import Outcome, Task


def audit(
    model: Annotated[str, typer.Argument(help="A model folder, a hub id, smollm2, or the folder of a PEFT adapter.")],
    base: Annotated[
        str,
        typer.Option(
            help="The model under the adapter, audited too, for before and after. [default: as the adapter says]"
        ),
    ] = "",
    tasks: Annotated[
        list[str] | None,
        typer.Option("--tasks", help=f"A task of `moored list tasks`; repeatable. [default: {', '.join(TASKS)}]"),
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
    html: Annotated[Path | None, typer.Option(help="Write the report here.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the record (JSON) here.")] = None,
) -> None:
    """Measure a model: harmful requests it answers, harmless ones it refuses, and how well it does a task.

    Give an adapter to see it beside the model that it was made from. Nothing is trained or changed.
    """
    from moored.cli.settings import parameters
    from moored.cli.studies import show

    given = {name: {"data": str(file)} for name, file in parameters(data or []).items()}
    for name, value in parameters(sets or []).items():
        task, _, parameter = name.partition(".")
        given[task] = {**given.get(task, {}), parameter: value}
    built = _built(tasks or list(TASKS), n, given)
    subjects = _subjects(model, base)
    begin = time.monotonic()
    measured = {title: _measure(where, adapter, built) for title, (where, adapter) in subjects.items()}
    record = _record(model, measured, built, time.monotonic() - begin)

    from rich.console import Console

    from moored.report.html import write_report

    show(record, Console())
    for path, written in ((html, lambda p: write_report(record, p)), (out, record.save)):
        if path is not None:
            typer.echo(f"written: {written(path)}")


def _built(names: list[str], n: int, given: dict[str, dict[str, Any]]) -> dict[str, Task]:
    """The tasks by name, with their own parameters."""
    from moored.errors import unknown
    from moored.study.methods import build

    for name in given:
        if name not in names:
            raise unknown("task in --data or --set", name, names)
    tasks: dict[str, Task] = {name: build("tasks", name, {"n": n, **given.get(name, {})}) for name in names}
    for task in tasks.values():
        task.rows()  # finds a bad file before a model is loaded
    return tasks


def _subjects(model: str, base: str) -> dict[str, tuple[str, Path | None]]:
    """What to measure by title: the model, or an adapter with the model under it first."""
    from moored.errors import ConfigError, DataError

    config = Path(model) / "adapter_config.json"
    if not config.is_file():
        if base:
            raise ConfigError(f"--base goes with an adapter, and {model} is none (it has no adapter_config.json)")
        return {Path(model).name: (model, None)}
    try:
        named = base or json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except ValueError as error:
        raise DataError(f"{config} is not JSON ({error}); copy the adapter again") from error
    if not named:
        raise ConfigError(f"{config} does not name the model under the adapter; give it with --base")
    return {f"{Path(named).name} (before)": (named, None), f"{Path(model).name} (after)": (named, Path(model))}


def _measure(where: str, adapter: Path | None, tasks: dict[str, Task]) -> list[Outcome]:
    from moored.hf.loaders import load_model, load_serving, load_tokenizer
    from moored.tasks.evaluate import evaluate

    model, tokenizer = load_model(where, adapter=adapter), load_tokenizer(where)
    title = f"asking {Path(adapter or where).name}"
    with bar(title) as show:
        return evaluate(
            model,
            tokenizer,
            list(tasks.values()),
            lambda done, total, _task: show(done, total, title),
            serving=load_serving(where, adapter=adapter),
        )


def _record(model: str, measured: dict[str, list[Outcome]], tasks: dict[str, Task], seconds: float) -> Record:
    from moored.report.record import Record
    from moored.study.environment import commit, machine, versions
    from moored.study.results import column

    return Record(
        name="audit",
        title=f"Audit of {Path(model).name}",
        model=Path(model).name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=commit(),
        versions=versions(),
        machine=machine(),
        seconds=seconds,
        tasks=[column(task) for task in tasks.values()],
        arms=[_arm(title, outcomes, list(tasks.values())) for title, outcomes in measured.items()],
    )


def _arm(title: str, outcomes: list[Outcome], tasks: list[Task]) -> Arm:
    from moored.report.record import Arm, Share
    from moored.study.results import examples, scores
    from moored.study.stages import outcome_record

    records: list[dict[str, Any]] = [outcome_record(outcome) for outcome in outcomes]
    return Arm(
        name=title,
        title=title,
        kind="start",
        metrics={record["task"]: Share(**record["estimate"]) for record in records},
        scores={task.name: scores(task, record) for task, record in zip(tasks, records, strict=True)},
        examples=examples(records[0], refusals=records[0]["task"] != "utility"),
    )
