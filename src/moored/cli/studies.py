# SPDX-License-Identifier: Apache-2.0
"""Run a recipe from the command line and show what came of it: for `moored run` and `moored demo`."""

from __future__ import annotations

import shlex
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from moored.report.record import Example, Record
    from moored.study.recipe import Recipe

STOPPED = 130
ANSWER_WIDTH = 160
"""Characters of an answer that are shown."""


def run_study(recipe: Recipe, *, out: Path, store: Path | None) -> int:
    """Run a recipe, print the table, and write `<name>.json` and `<name>.html` to `out`.

    Args:
        recipe: what to do.
        out: folder of the results.
        store: folder of finished stages; None: `out/store`.

    Returns:
        0, or 130 if it was stopped by Ctrl-C.
    """
    begin = time.monotonic()
    from rich.console import Console

    from moored.cli.screen import Screen
    from moored.report.html import duration, write_report
    from moored.study.store import Store
    from moored.study.study import Study

    messages, answers = Console(stderr=True), Console()
    opened = Store(store or out / "store")
    try:
        with Screen(messages).showing() as screen:
            record = Study(recipe).run(opened, screen.watch, command=command_line())
    except KeyboardInterrupt:
        messages.print("stopped; run the same command again to resume", highlight=False)
        return STOPPED
    finally:
        opened.close()
    page = write_report(record, out / f"{recipe.name}.html")
    data = record.save(out / f"{recipe.name}.json")
    show(record, answers)
    answers.print(f"report:  {page}\nresults: {data}", highlight=False, soft_wrap=True)
    done = [stage for stage in record.stages if not stage.cached]
    answers.print(
        f"{duration(time.monotonic() - begin)} in all; {len(done)} of {len(record.stages)} stages were run, "
        f"{len(record.stages) - len(done)} reused",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def show(record: Record, console: Console) -> None:
    """Print the table, what it says in words, warnings, and the example prompts with every arm's answer."""
    from rich.markup import escape

    from moored.report.headline import alarms, claims
    from moored.report.table import table

    console.print()
    console.print(table(record))
    console.print()
    for sentence in claims(record):
        console.print(escape(sentence), highlight=False)
    for warning in alarms(record):
        console.print(f"[yellow]warning:[/yellow] {escape(warning)}", highlight=False)
    console.print()
    prompts = dict.fromkeys(example.prompt for arm in record.arms for example in arm.examples)
    for prompt in prompts:
        console.print(f"[bold]{escape(_shortened(prompt))}[/bold]", highlight=False)
        for arm in record.arms:
            for example in arm.examples:
                if example.prompt == prompt:
                    console.print(f"  {escape(record.label(arm))}: {_answer(example)}", highlight=False)
        console.print()


def command_line() -> str:
    """The command that was typed."""
    return shlex.join(["moored", *sys.argv[1:]])


def _answer(example: Example) -> str:
    from rich.markup import escape

    verdict = {True: "refused", False: "answered", None: "unjudged"}[example.refused]
    return f"{escape(_shortened(example.answer) or '(nothing)')} [dim]({verdict})[/dim]"


def _shortened(text: str) -> str:
    return textwrap.shorten(text, ANSWER_WIDTH, placeholder=" ...")
