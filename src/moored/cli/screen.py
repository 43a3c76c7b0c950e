# SPDX-License-Identifier: Apache-2.0
"""What a study shows while it works: a live line on a terminal, plain lines in a log file; all of it on stderr."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from moored.study.study import Event

EVERY = 30.0
"""Seconds between plain progress lines of one stage."""


LONG = ("align", "finetune", "twin")
"""Kinds of stages whose beginning is worth a plain line."""


def clock(seconds: float) -> str:
    """Seconds as `8:05`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


class Screen:
    """Shows the events of a study.

    Args:
        console: where; a terminal gets a live line.
    """

    def __init__(self, console: Console):
        self.console = console
        self._begin = time.monotonic()
        self._last_line = 0.0
        self._live: Progress | None = None
        self._task: TaskID | None = None

    @contextmanager
    def showing(self) -> Iterator[Screen]:
        """Show events, and what the package logs, until the block ends."""
        handler = _Notes(self.console)
        logger = logging.getLogger("moored")
        before, logger.level = logger.level, logging.INFO
        logger.addHandler(handler)
        try:
            if self.console.is_terminal:
                columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn())
                with Progress(
                    *columns, TextColumn("{task.fields[what]}"), console=self.console, transient=True
                ) as live:
                    self._live = live
                    self._task = live.add_task("getting ready", total=None, what="")
                    yield self
            else:
                yield self
        finally:
            self._live = None
            logger.removeHandler(handler)
            logger.level = before

    def watch(self, event: Event) -> None:
        """Show one event."""
        match event.state:
            case "started":
                self._started(event)
            case "working":
                self._working(event)
            case "finished":
                self._line(event, f"done in {clock(event.seconds)}")
            case "reused":
                self._line(event, f"reused (took {clock(event.seconds)})")
            case "waiting":
                self._line(event, "another process is at it; waiting")

    def _started(self, event: Event) -> None:
        self._last_line = time.monotonic()
        if self._live and self._task is not None:
            self._live.reset(self._task, description=escape(_name(event)), total=None, what="")
        elif event.stage.kind in LONG:
            self._line(event, "...")

    def _working(self, event: Event) -> None:
        if self._live and self._task is not None:
            what = escape(f"{event.done}/{event.total} {event.what}")
            self._live.update(self._task, completed=event.done, total=event.total or None, what=what)
        elif time.monotonic() - self._last_line > EVERY:
            self._last_line = time.monotonic()
            self._line(event, f"{event.done}/{event.total} {event.what}".rstrip())

    def _line(self, event: Event, what: str) -> None:
        elapsed = clock(time.monotonic() - self._begin)
        self.console.print(
            f"[dim]{elapsed:>5}[/dim] {escape(_name(event))}: {escape(what)}", highlight=False, soft_wrap=True
        )


class _Notes(logging.Handler):
    """What the package logs (chosen strengths, for example), as lines that do not break the live one."""

    def __init__(self, console: Console):
        super().__init__(logging.INFO)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        self.console.print(f"      [dim]{escape(record.getMessage())}[/dim]", highlight=False, soft_wrap=True)


def _name(event: Event) -> str:
    return f"[{event.index:>2}/{event.count}] {event.row}: {event.stage.words}"
