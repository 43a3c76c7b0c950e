# SPDX-License-Identifier: Apache-2.0
"""Safety against utility for many methods at once: a small panel for each, the trivial baselines behind it in all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

from moored.report import svg
from moored.report.headline import measured
from moored.report.record import Arm, Measured, Record
from moored.report.svg import WIDTH, Axis, Real
from moored.report.table import estimate

COLUMNS = 3
_WIDTH, _HEIGHT, _GAP, _LEFT, _TOP = 130.0, 96.0, 18.0, 34.0, 66.0


def panels(record: Record) -> str:
    """Small multiples: one panel per title, a point per strength, joined in the order of the sweep.

    Grey and hollow in every panel: the starts, the run without a method, and each trivial baseline as a line over its
    strengths. A method earns its place to the right of that line and below it.

    Args:
        record: of a study with a safety and a utility task.

    Returns:
        An SVG figure; "" where no run with a method has both scores.
    """
    safety, utility = record.task("safety"), record.task("utility")
    if safety is None or utility is None:
        return ""
    arms = [arm for arm in record.arms if measured(arm, safety) and measured(arm, utility)]
    methods = by_title([arm for arm in arms if arm.kind == "run" and arm.methods and not arm.baseline])
    if not methods:
        return ""
    behind = [arm for arm in arms if arm.kind == "start" or arm.undefended or arm.baseline]
    parts = [
        svg.text(0, 12, f"{safety.title}, %: down is better", "strong"),
        svg.line(0, 29, 24, 29, "line ref dash"),
        svg.mark(12, 29, "ref hollow", size=2.6),
        svg.text(31, 33, "the start, no method, and the trivial baselines by strength"),
    ]
    for place, points in enumerate(methods):
        x, y = _axes(place)
        parts += [_frame(x, y, place, len(methods)), svg.text(x.start, y.end - 7, _fitting(points[0].title), "strong")]
        parts += [_drawn(record, line, x, y, safety, utility, "ref dash", "ref hollow") for line in by_title(behind)]
        parts.append(_drawn(record, points, x, y, safety, utility, "s0", "s0"))
    said = [
        f"{record.label(arm)}: {utility.title} {estimate(arm.metrics[utility.name])}"
        f" and {safety.title} {estimate(arm.metrics[safety.name])}"
        for arm in [*behind, *(arm for points in methods for arm in points)]
    ]
    rows = math.ceil(len(methods) / COLUMNS)
    height = _TOP + rows * _HEIGHT + (rows - 1) * (_GAP + 22) + 44
    parts.append(svg.text(WIDTH, height - 6, f"{utility.title}, %: right is better", "end soft"))
    return svg.figure(f"{safety.title} against {utility.title}, by method", "; ".join(said), height, *parts)


def by_title(arms: Sequence[Arm]) -> list[list[Arm]]:
    """The arms of each title, in the order of their sweep; titles as they come.

    Args:
        arms: in any order.
    """
    order = {title: place for place, title in enumerate(dict.fromkeys(arm.title for arm in arms))}
    by_title = sorted(arms, key=lambda arm: (order[arm.title], sorted(arm.sweep.items())))
    return [list(group) for _, group in groupby(by_title, key=lambda arm: arm.title)]


def _axes(place: int) -> tuple[Axis, Axis]:
    """The scales of the panel at `place`, row by row."""
    row, column = divmod(place, COLUMNS)
    left, top = _LEFT + column * (_WIDTH + _GAP), _TOP + row * (_HEIGHT + _GAP + 22)
    x = Axis(low=0, high=100, start=left, end=left + _WIDTH)
    return x, Axis(low=0, high=100, start=top + _HEIGHT, end=top)


def _frame(x: Axis, y: Axis, place: int, count: int) -> str:
    """Grid lines at 0, 50 and 100; numbers only on the left and below the lowest panel of a column."""
    parts = []
    for tick in (0, 50, 100):
        parts.append(svg.line(x.start, y.at(tick), x.end, y.at(tick), "grid"))
        parts.append(svg.line(x.at(tick), y.start, x.at(tick), y.end, "grid"))
        if place % COLUMNS == 0:
            parts.append(svg.text(x.start - 5, y.at(tick) + 4, f"{tick}", "end soft"))
        if place + COLUMNS >= count:
            anchor = {0: "soft", 50: "middle soft", 100: "end soft"}[tick]  # neighbours keep apart
            parts.append(svg.text(x.at(tick), y.start + 16, f"{tick}", anchor))
    return "".join(parts)


def _drawn(
    record: Record, arms: Sequence[Arm], x: Axis, y: Axis, safety: Measured, utility: Measured, line: str, mark: str
) -> str:
    """A line through the points of one title, and the points with what they are as a tooltip."""
    at: list[tuple[Real, Real]] = []
    marks = []
    for arm in arms:
        right, harm = arm.metrics[utility.name], arm.metrics[safety.name]
        at.append((x.at(right.value), y.at(harm.value)))
        tip = f"{record.label(arm)}: {utility.title} {estimate(right)}, {safety.title} {estimate(harm)}"
        marks.append(svg.mark(*at[-1], mark, size=2.6 if "ref" in mark else 3.6, tip=tip))
    return svg.path(at, f"line {line}") + "".join(marks)


def _fitting(title: str) -> str:
    return svg.shorten(title, _WIDTH + _GAP - 4)
