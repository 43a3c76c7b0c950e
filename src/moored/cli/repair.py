# SPDX-License-Identifier: Apache-2.0
"""`moored repair`: a post-fine-tuning method on an adapter or checkpoint that you have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from moored.repairs.report import RepairReport

UNCHANGED = 3
"""Exit code of a repair that changed nothing."""


def repair(
    tuned: Annotated[str, typer.Argument(help="Folder of a PEFT LoRA adapter, or of a full model.")],
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist.")],
    method: Annotated[str, typer.Option(help="A repair; see `moored list repairs`.")] = "safe_lora",
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
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A parameter of the method; repeatable. Safe LoRA takes exactly one of tau (cosine, 0-1), "
            "k (modules to project) and fraction (share of the modules, 0-1).",
        ),
    ] = None,
    allow_unchanged: Annotated[
        bool, typer.Option("--allow-unchanged", help="Exit with 0 even if nothing was changed.")
    ] = False,
) -> int:
    """Repair fine-tuned weights; the input is not changed, an adapter stays an adapter unless merged.

    Writes the weights, a report with one row per module (moored.json) and a model card. Exit code 3 if nothing was
    changed: then the output equals the input, and a stronger setting is needed.
    """
    from moored.cli.settings import parameters

    given = parameters(sets or [])
    from rich.console import Console
    from rich.progress import Progress

    from moored.hf.loaders import resolve_model
    from moored.repairs.engine import repair as run
    from moored.study.methods import build

    chosen = build("repairs", method, given)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as live:
        bar = live.add_task(method)
        report = run(
            tuned,
            chosen,
            aligned=resolve_model(aligned) if aligned else None,
            base=resolve_model(base) if base else None,
            unaligned=resolve_model(unaligned) if unaligned else None,
            safe=resolve_model(safe) if safe else None,
            harmful=harmful or None,
            alignment=alignment or None,
            calibration=calibration or None,
            out=out,
            merge=merge,
            revert=revert,
            progress=lambda done, total, what: live.update(bar, completed=done, total=total, description=what),
        )
    typer.echo(_summary(report))
    if report.changed == 0 and not allow_unchanged:
        typer.echo(f"nothing was changed: {out} equals {tuned}; use a stronger setting, or --allow-unchanged", err=True)
        return UNCHANGED
    return 0


def _summary(report: RepairReport) -> str:
    lines = [
        f"{report.out}: {report.changed} of {len(report.modules)} modules changed by {report.method} "
        f"in {report.seconds:.1f} s"
    ]
    return "\n".join([*lines, *(f"note: {note}" for note in report.notes)])
