# SPDX-License-Identifier: Apache-2.0
"""Run a recipe from the command line and show what came of it: for `moored run`, `demo` and `attack sweep`."""

from __future__ import annotations

import shlex
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from moored.report.record import Example, Record
    from moored.service.launchers.base import Launcher
    from moored.study.recipe import Recipe
    from moored.study.store import Store
    from moored.study.study import Watcher
    from moored.sweep import Sweep

STOPPED = 130
ANSWER_WIDTH = 160
"""Characters of an answer that are shown."""


def run_study(
    recipe: Recipe, *, out: Path, store: Path | None, where: Callable[[Store], Launcher] | None = None
) -> int:
    """Run a recipe, print the table, and write `<name>.json` and `<name>.html` to `out`.

    Args:
        recipe: what to do.
        out: folder of the results.
        store: folder of finished stages; None: `out/store`.
        where: the launcher that runs the rows of the table; None: all of it is done here.

    Returns:
        0, or 130 if it was stopped by Ctrl-C.
    """
    from moored.study.study import Study

    def work(opened: Store, watch: Watcher) -> Record:
        study = Study(recipe)
        if where is None:
            return study.run(opened, watch, command=command_line())
        from moored.service.rows import Rows

        launcher = where(opened)
        launcher.check()
        return Rows(study=study, store=opened, launcher=launcher, watch=watch).run(command=command_line())

    return _run(work, lambda record: record, out=out, store=store)


def run_sweep(sweep: Sweep, *, out: Path, store: Path | None) -> int:
    """Search for worst cases, print those, and write all that was tried as `run_study` does.

    Args:
        sweep: what to search.
        out: folder of the results, and of the search: `<recipe>.trials`.
        store: folder of finished stages; None: `out/store`.

    Returns:
        0, or 130 if it was stopped by Ctrl-C.
    """
    from moored.sweep import beside, final

    def work(opened: Store, watch: Watcher) -> Record:
        return sweep.run(opened, out / f"{sweep.recipe.name}.trials", watch, command=command_line())

    return _run(work, final, out=out, store=store, say=beside)


def _run(
    work: Callable[[Store, Watcher], Record],
    shown: Callable[[Record], Record],
    *,
    out: Path,
    store: Path | None,
    say: Callable[[Record], list[str]] = lambda record: [],
) -> int:
    """Work on a store, show how it goes, write the record, and print the part that is `shown`, and what to say."""
    begin = time.monotonic()
    from rich.console import Console

    from moored.cli.screen import Screen
    from moored.report.html import duration, write_report
    from moored.study.store import Store

    messages, answers = Console(stderr=True), Console()
    opened = Store(store or out / "store")
    try:
        with Screen(messages).showing() as screen:
            record = work(opened, screen.watch)
    except KeyboardInterrupt:
        messages.print("stopped; run the same command again to resume", highlight=False)
        return STOPPED
    finally:
        opened.close()
    page = write_report(record, out / f"{record.name}.html")
    data = record.save(out / f"{record.name}.json")
    show(shown(record), answers)
    for sentence in say(record):
        answers.print(sentence, highlight=False, markup=False)
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
