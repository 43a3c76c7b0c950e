# SPDX-License-Identifier: Apache-2.0
"""The one table of a study: for the terminal (rich) and for a README (markdown).

Every estimate reads `93.8 [85, 98]`: value and 95 % interval in %. Its n stands in the column head when it is
the same for all rows, otherwise in the cell. `python -m moored.report.table` shows made-up numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from moored.report.headline import kept
from moored.report.record import Arm, Measured, Record, Share

NOTHING = "–"
"""What stands where nothing was measured."""

_ARROW = {"lower": "↓", "higher": "↑"}


def number(value: float | int, digits: int = 1) -> str:
    """A number with `digits` decimals, or a dash for NaN."""
    return f"{value:.{digits}f}" if math.isfinite(value) else NOTHING


def estimate(share: Share | None, *, n: bool = False) -> str:
    """An estimate as `93.8 [85, 98]`; a dash if not measured.

    Where the judges of an ensemble disagree, `split 4.7%` stands after it, and if asked `n=64`; what is to be read
    together with it stands behind, `(safe refused 4.0 [2, 7], unsafe answered 10.0 [7, 15])`.

    What is no share has three digits: `0.0521 [0.0402, 0.0663]`.

    Args:
        share: the estimate.
        n: whether to say how many judged answers it rests on.
    """
    if share is None or not math.isfinite(share.value):
        return NOTHING
    value, end = (".1f", ".0f") if share.unit == "%" else (".3g", ".3g")
    parts = [format(share.value, value)]
    if math.isfinite(share.low) and math.isfinite(share.high):
        parts.append(f"[{share.low:{end}}, {share.high:{end}}]")
    if share.disagreement:
        parts.append(f"split {number(share.disagreement)}%")
    if n:
        parts.append(f"n={share.n}")
    if share.parts:
        parts.append("(" + ", ".join(f"{name} {estimate(part)}" for name, part in share.parts.items()) + ")")
    return " ".join(parts)


def common_n(record: Record, task: Measured) -> int | None:
    """The n that every row of a column shares, or None where they differ (then each cell says its own)."""
    counts = {arm.metrics[task.name].n for arm in record.arms if task.name in arm.metrics}
    return counts.pop() if len(counts) == 1 else None


def ordered(arms: Iterable[Arm]) -> list[Arm]:
    """Arms in table order: reference rows first, otherwise as they come."""
    return sorted(arms, key=lambda arm: arm.kind != "start")


def heads(record: Record) -> list[str]:
    """The column headings; a task's has a second line: better direction, unit and n."""
    titles = []
    for task in record.tasks:
        n = common_n(record, task)
        unit = next((arm.metrics[task.name].unit for arm in record.arms if task.name in arm.metrics), "%")
        scale = f"{_ARROW[task.better]} {unit}" + (f", n={n}" if n is not None else "")
        titles.append(f"{task.title}\n{scale}")
    return ["Run", *titles, *([] if record.limit is not None else ["Seconds", "Passes\nper step"])]


def cells(record: Record, arm: Arm) -> list[str]:
    """One row: title, one estimate per task, seconds, passes per step (not of an audit, which makes no model)."""
    shares = [estimate(arm.metrics.get(task.name), n=common_n(record, task) is None) for task in record.tasks]
    costs = [] if record.limit is not None else [number(arm.seconds, 0), number(arm.passes_per_step, 2)]
    return [record.label(arm), *shares, *costs]


def notes(record: Record) -> str:
    """How to read the numbers: intervals, seeds, answers left out."""
    said = ["value [95 % interval]"]
    if len(record.seeds) > 1:
        seeds = ", ".join(str(seed) for seed in record.seeds)
        said.append(f"mean over seeds {seeds}, interval from the lowest to the highest end of theirs")
    shares = [share for arm in record.arms for share in arm.metrics.values()]
    if any(share.disagreement for share in shares):
        said.append("split: answers on which the judges disagree")
    unjudged = sum(share.unjudged for share in shares)
    if unjudged:
        said.append(f"{unjudged} answers could not be judged and are left out")
    return "; ".join(said)


def footnote(record: Record) -> str:
    """`notes`, and which expectations were missed."""
    return "; ".join([notes(record), kept(record)] if record.expectations else [notes(record)])


def table(record: Record | Mapping[str, Any]) -> Table:
    """The table for the terminal; fits in 80 columns. Reference rows stand first and are dimmed.

    Raises:
        DataError: not a results record.
    """
    record = Record.read(record)
    title = escape(record.title or record.name) + (" (made-up numbers)" if record.demonstration else "")
    grid = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        pad_edge=False,
        caption=escape(footnote(record)),
        caption_justify="left",
    )
    arms = ordered(record.arms)
    rows = [cells(record, arm) for arm in arms]
    for i, head in enumerate(heads(record)):
        widest = max(len(part) for part in [*head.split(), *(row[i] for row in rows)])
        # Where the columns are wider than the terminal they fold: a number that is cut off is another number.
        grid.add_column(
            escape(head),
            justify="right" if i else "left",
            max_width=widest if i else None,
            min_width=None if i else 12,
            overflow="fold",
        )
    for i, arm in enumerate(arms):
        last_start = arm.kind == "start" and i + 1 < len(arms) and arms[i + 1].kind != "start"
        grid.add_row(
            *(escape(cell) for cell in rows[i]),
            style="dim" if arm.kind == "start" else None,
            end_section=last_start,
        )
    return grid


def markdown(record: Record | Mapping[str, Any]) -> str:
    """The same table in GitHub markdown, with its footnote.

    Raises:
        DataError: not a results record.
    """
    record = Record.read(record)
    titles = heads(record)
    rows = [cells(record, arm) for arm in ordered(record.arms)]
    rule = ["---", *["--:"] * (len(titles) - 1)]
    lines = ["| " + " | ".join(markdown_text(cell) for cell in row) + " |" for row in [titles, rule, *rows]]
    note = footnote(record) + ("; made-up numbers" if record.demonstration else "")
    return "\n".join([*lines, "", markdown_text(note[0].upper() + note[1:]) + "."]) + "\n"


def markdown_text(content: str) -> str:
    """One line of markdown that shows `content` as it is: it cannot end a table cell or become markup."""
    flat = " ".join(content.split())
    for mark in ("\\", "|", "`", "*", "<", "](", "!["):
        flat = flat.replace(mark, "\\" + mark)
    return flat


def _demo() -> None:
    from moored.report.demo import demo_record

    Console().print(table(demo_record()))


if __name__ == "__main__":
    _demo()
