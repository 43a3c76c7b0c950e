# SPDX-License-Identifier: Apache-2.0
"""`moored repair`: a post-fine-tuning method on an adapter or checkpoint that you have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moored.cli.bar import bar
from moored.errors import ConfigError, unknown
from moored.tasks import TASKS

if TYPE_CHECKING:
    from moored.choose import Choice
    from moored.repairs.report import RepairReport

UNCHANGED = 3
"""Exit code of a repair that changed nothing."""
UNSAFE = 4
"""Exit code of a search that found nothing as safe as the aligned model."""


def repair(
    tuned: Annotated[str, typer.Argument(help="Folder of a PEFT LoRA adapter, or of a full model.")],
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist.")],
    method: Annotated[
        str,
        typer.Option(
            help="A repair; see `moored list repairs`. auto: every one that can work with what is given, at several "
            "strengths, judged on validation prompts."
        ),
    ] = "safe_lora",
    aligned: Annotated[
        str, typer.Option(help="The model that fine-tuning started from: folder, hub id or smollm2.")
    ] = "",
    base: Annotated[str, typer.Option(help="The same model before alignment: folder, hub id or smollm2.")] = "",
    unaligned: Annotated[
        str, typer.Option(help="The aligned model tuned on unsafe rows: adapter or model; only some methods need it.")
    ] = "",
    safe: Annotated[
        str, typer.Option(help="The aligned model tuned on safe rows: adapter or model; only some methods need it.")
    ] = "",
    harmful: Annotated[
        str, typer.Option(help="Harmful prompts with harmful answers: file, hub id or synthetic:<set>.")
    ] = "",
    alignment: Annotated[
        str, typer.Option(help="Harmful prompts with safe answers: file, hub id or synthetic:<set>.")
    ] = "",
    calibration: Annotated[str, typer.Option(help="Rows of the user's task: file, hub id or synthetic:<set>.")] = "",
    merge: Annotated[
        bool, typer.Option("--merge", help="Write an adapter as a full model, in the aligned model's type and shards.")
    ] = False,
    revert: Annotated[
        bool,
        typer.Option("--revert", help="Set trained tensors that the repair does not edit back to the aligned model's."),
    ] = False,
    patch: Annotated[
        bool,
        typer.Option("--patch", help="Beside a full model, write what differs from the tuned one as a small file."),
    ] = False,
    device: Annotated[
        str, typer.Option(help="Where to compute: cpu, cuda, cuda:1 ... [default: the GPU if there is one]")
    ] = "",
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A parameter of the method; repeatable. Safe LoRA takes exactly one of tau (cosine, 0-1), "
            "k (modules to project) and fraction (share of the modules, 0-1).",
        ),
    ] = None,
    tries: Annotated[
        list[str] | None,
        typer.Option("--try", metavar="METHOD", help="With auto: try this method; repeatable. [default: all]"),
    ] = None,
    n: Annotated[int, typer.Option(min=1, help="With auto: validation prompts per task.")] = 64,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", metavar="TASK=FILE", help="With auto: own validation prompts for a task; repeatable. See `audit`."
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="With auto: write a report on everything that was tried here.")
    ] = None,
    allow_unchanged: Annotated[
        bool, typer.Option("--allow-unchanged", help="Exit with 0 even if nothing was changed.")
    ] = False,
) -> int:
    """Repair fine-tuned weights; the input is not changed, an adapter stays an adapter unless merged.

    Writes the weights, a report with one row per module (moored.json) and a model card. Exit code 3 if nothing was
    changed: then the output equals the input, and a stronger setting is needed. With auto also search.json; exit code 4
    if nothing that was tried is as safe as the aligned model.
    """
    from moored.cli.settings import parameters
    from moored.hf.loaders import resolve_model
    from moored.study.methods import build

    given = parameters(sets or [])
    chosen = None if method == "auto" else build("repairs", method, given)
    models = {"aligned": aligned, "base": base, "unaligned": unaligned, "safe": safe}
    rows = {"harmful": harmful, "alignment": alignment, "calibration": calibration}
    inputs: dict[str, Any] = {name: resolve_model(where) if where else None for name, where in models.items()}
    inputs |= {name: where or None for name, where in rows.items()}
    inputs |= {"out": out, "merge": merge, "revert": revert, "patch": patch, "device": device or None}
    if chosen is None:
        if given:
            raise ConfigError("--set is for one method; with --method auto, say what to try by --try")
        found = _search(tuned, inputs, tries or [], n, data or [])
        if html is not None:
            from moored.report.html import write_report

            typer.echo(f"written: {write_report(found.record, html)}")
        return _code(found.report, tuned, allow_unchanged) or (0 if found.back else UNSAFE)
    if tries or data or html:
        raise ConfigError("--try, --data and --html are for --method auto")

    from moored.repairs.engine import repair as run

    with bar(method) as progress:
        report = run(tuned, chosen, **inputs, progress=progress)
    typer.echo(_summary(report))
    return _code(report, tuned, allow_unchanged)


def _search(tuned: str, inputs: dict[str, Any], tries: list[str], n: int, data: list[str]) -> Choice:
    """Try many repairs; write and show what the rule takes."""
    from rich.console import Console

    from moored.choose import AS_IS, VALIDATION, choose, front, ladders
    from moored.cli.settings import parameters
    from moored.report.table import table
    from moored.study.methods import build

    own = parameters(data)
    if strange := set(own) - set(TASKS):
        raise unknown("task in --data", min(strange), TASKS)
    asked = [
        build("tasks", name, {"n": n, "data": str(own[name])} if name in own else {**VALIDATION, "n": n})
        for name in TASKS
    ]
    candidates = ladders(tries) if tries else None
    with bar("auto") as progress:
        found = choose(tuned, **inputs, candidates=candidates, tasks=asked, progress=progress)
    record = found.record
    arms = [record.arm("aligned"), record.arm(AS_IS), *(arm for arm in front(record) if arm.name != AS_IS)]
    Console().print(table(record.model_copy(update={"arms": arms})))
    for warning in record.warnings:
        typer.echo(f"note: {warning}", err=True)
    typer.echo(_summary(found.report))
    return found


def _code(report: RepairReport, tuned: str, allow_unchanged: bool) -> int:
    if report.changed or allow_unchanged:
        return 0
    typer.echo(
        f"nothing was changed: {report.out} equals {tuned}; use a stronger setting, or --allow-unchanged", err=True
    )
    return UNCHANGED


def _summary(report: RepairReport) -> str:
    lines = [
        f"{report.out}: {report.changed} of {len(report.modules)} modules changed by {report.method} "
        f"in {report.seconds:.1f} s, {_size(report.bytes_read)} read at {_size(report.bytes_per_second)}/s"
    ]
    return "\n".join([*lines, *(f"note: {note}" for note in report.notes)])


def _size(count: float | int) -> str:
    """Bytes in MB, below one in KB."""
    return f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count / 1e3:.0f} KB"
