# SPDX-License-Identifier: Apache-2.0
"""`moored compare`: are two runs different, or is it noise?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from moored.report.compare import TaskComparison
    from moored.report.record import Arm, Record


def compare(
    first: Annotated[
        str,
        typer.Argument(
            metavar="A", help="A record of `moored run` or `moored audit` (JSON), or one arm of it as RECORD:ARM."
        ),
    ],
    second: Annotated[str, typer.Argument(metavar="B", help="What is compared with it, given likewise.")],
    matched: Annotated[
        bool,
        typer.Option(
            "--matched",
            help="Compare safety at the same task accuracy: A is a curve of arms, RECORD:ARM,ARM,..., that differ in "
            "learning rate, steps or strength (or the title that the arms of a sweep share).",
        ),
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Write the comparison (JSON) here.")] = None,
) -> None:
    """Say how B differs from A, task by task, with 95 % intervals, and what is noise.

    Answers to the same prompts are compared one by one, and only those; if no task shares any, nothing is compared
    (exit code 2). Records written before prompts were kept are compared as independent samples, which is wider: run
    their recipe again (finished stages are reused) to have them paired.
    """
    from rich.console import Console

    from moored.report.record import write_whole

    (left, arms), (right, others) = _read(first), _read(second)
    if _file(first) == _file(second):
        right = left
    console = Console()
    compared = _matched(left, arms, right, others, console) if matched else _each(left, arms, right, others, console)
    if out is not None:
        typer.echo(f"written: {write_whole(out, json.dumps(compared, indent=1, ensure_ascii=False) + chr(10))}")


def _file(where: str) -> Path:
    """The file in `RECORD` or `RECORD:ARM`."""
    return Path(where) if Path(where).is_file() or ":" not in where else Path(where.rpartition(":")[0])


def _read(where: str) -> tuple[Record, list[str]]:
    """The record, and the arms that are named."""
    from moored.report.record import Record

    file = _file(where)
    named = where[len(str(file)) + 1 :] if str(file) != where else ""
    record = Record.load(file)
    known = {arm.name for arm in record.arms} | {arm.title for arm in record.arms}
    return record, [named] if named in known else [name for name in named.split(",") if name]


def _each(left: Record, arms: list[str], right: Record, others: list[str], console: Console) -> list[dict[str, Any]]:
    """Show every pair of arms."""
    from rich.markup import escape

    from moored.errors import ConfigError
    from moored.report.compare import compare, pairs

    if len(arms) > 1 or len(others) > 1:
        raise ConfigError("name one arm, RECORD:ARM; several make a curve, which goes with --matched")
    written = []
    for arm, other in pairs(left, "".join(arms), right, "".join(others)):
        found = compare(left, arm, right, other)
        console.print(_table(f"{right.label(other)} (B) against {left.label(arm)} (A)", found))
        for each in found:
            console.print(escape(each.sentence), highlight=False)
        for basis in dict.fromkeys(each.basis for each in found if each.basis):
            console.print(f"[dim]{escape(basis)}[/dim]", highlight=False)
        console.print()
        written.append({"first": arm.name, "second": other.name, "tasks": [each.record() for each in found]})
    return written


def _table(title: str, found: list[TaskComparison]) -> Any:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from moored.report.table import NOTHING, estimate

    grid = Table(
        title=escape(title),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    grid.add_column("")
    for head in ("A", "B", "B - A", "n"):
        grid.add_column(head, justify="right")
    for each in found:
        gap = each.difference
        style = "dim" if gap is None or gap.noise else None
        grid.add_row(
            escape(each.task.title),
            estimate(each.first),
            estimate(each.second),
            each.gap or NOTHING,
            str(gap.n if gap else NOTHING),
            style=style,
        )
    return grid


def _matched(left: Record, arms: list[str], right: Record, others: list[str], console: Console) -> list[dict[str, Any]]:
    """Show every arm of the second record beside the curve."""
    from rich.markup import escape

    from moored.errors import ConfigError, DataError
    from moored.report.matched import comparable, matched, sentence

    curve = _curve(left, arms)
    safety, capability = left.task("safety"), left.task("utility")
    if safety is None or capability is None:
        raise DataError(f"{left.name!r} has no task of safety or none of utility; --matched needs one of each")
    for column in (safety, capability):
        if column not in right.tasks:
            raise DataError(
                f"{right.name!r} does not measure {column.name} as {left.name!r} does (judge, version, data)"
            )
    beside = [right.arm(name) for name in others] or [
        arm for arm in right.arms if arm.kind == "run" and arm not in curve and comparable(curve, arm)
    ]
    if not beside:
        raise ConfigError("B has no run to hold against the curve; name arms as RECORD:ARM")
    written = []
    for arm in beside:
        found = matched(curve, arm, safety=safety.name, capability=capability.name)
        said = sentence(found, right.label(arm), safety, capability)
        console.print(escape(said), highlight=False, soft_wrap=True)
        written.append({"arm": arm.name, **found.record(), "sentence": said})
    return written


def _curve(record: Record, names: list[str]) -> list[Arm]:
    """The arms of a curve, by their names or by the title that they share."""
    from moored.errors import ConfigError

    shared = [arm for arm in record.arms if names == [arm.title]]
    curve = shared or [record.arm(name) for name in names]
    if len(curve) < 2:
        raise ConfigError(
            "--matched needs a curve of two arms or more in A: RECORD:ARM,ARM,... (of "
            f"{', '.join(arm.name for arm in record.arms)})"
        )
    return curve
