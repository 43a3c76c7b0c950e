# SPDX-License-Identifier: Apache-2.0
"""The plots of a study as inline SVG, drawn by hand: pure functions from a record to a string.

Each returns "" when the record has nothing to draw, so a caller can skip it. Intervals are whiskers;
reference rows are grey; baselines are hollow; an arm keeps its colour and its mark in every plot. Colours are
variables of `moored.report.svg.STYLE`. `python -m moored.report.plot` writes made-up examples.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console

from moored.report import svg
from moored.report.headline import focus, measured
from moored.report.panels import by_title, panels
from moored.report.record import Arm, LayerRow, Measured, Record, Share, write_whole
from moored.report.svg import SERIES, WIDTH, Axis, Box, Real
from moored.report.table import estimate, ordered

Point = tuple[Real, Real]

_LAYER = re.compile(r"^(?P<before>.*?)\.(?P<layer>\d+)\.(?P<kind>.+)$")


def intervals(record: Record, task: Measured) -> str:
    """One task, every arm in focus: a dot with its 95 % interval, and the number beside it."""
    arms = [arm for arm in ordered(focus(record)) if _on_scale(arm, task)]
    if not arms:
        return ""
    row, top = 34.0, 26.0
    x = Axis(low=0, high=100, start=190, end=WIDTH - 118)
    bottom = top + row * len(arms)
    parts = [svg.line(x.at(tick), top, x.at(tick), bottom, "grid") for tick in x.ticks()]
    parts += [svg.text(x.at(tick), bottom + 15, f"{tick:g}", "middle soft") for tick in x.ticks()]
    parts.append(svg.text(0, 12, f"{task.title}, %: {task.better} is better", "strong"))
    said = []
    for i, arm in enumerate(arms):
        share, y = arm.metrics[task.name], top + row * (i + 0.5)
        lines = svg.wrap(_label(record, arm), x.start - 10)
        for j, part in enumerate(lines):
            parts.append(svg.text(0, y + 4 + 15 * (j - (len(lines) - 1) / 2), part))
        parts.append(_dot(record, arm, x.at(share.value), y, share))
        parts.insert(len(x.ticks()), _whisker(record, arm, x, y, share))
        parts.append(svg.text(WIDTH, y + 4, estimate(share), "end"))
        said.append(f"{_label(record, arm)} {estimate(share, n=True)}")
    return svg.figure(f"{task.title} by run", "; ".join(said), bottom + 22, *parts)


def against_ratio(record: Record, task: Measured) -> str:
    """A task against the harmful ratio of the upload: one line per title; "" with fewer than two ratios."""
    arms = [arm for arm in record.arms if arm.kind == "run" and arm.ratio is not None and _on_scale(arm, task)]
    ratios = sorted({100 * arm.ratio for arm in arms if arm.ratio is not None})
    if len(ratios) < 2:
        return ""
    titles = list(dict.fromkeys(arm.title for arm in arms))
    legend, top = _legend([(title, _first(record, title)) for title in titles], record)
    pad = 0.04 * ratios[-1]
    x = Axis(low=-pad, high=ratios[-1] + pad, start=40, end=WIDTH - 14)
    y = Axis(low=0, high=100, start=top + 232, end=top + 14)
    parts = [svg.frame(x, y, "Harmful rows in the upload, %", f"{task.title}, %: {task.better} is better")]
    said = []
    for i, title in enumerate(titles):
        line = sorted((arm for arm in arms if arm.title == title), key=lambda arm: arm.ratio or 0.0)
        nudge = 3.0 * (i - (len(titles) - 1) / 2)
        points = [(x.at(100 * (a.ratio or 0)) + nudge, y.at(a.metrics[task.name].value)) for a in line]
        parts.append(svg.path(points, f"line {_class(record, line[0])}{_dash(line[0])}"))
        for arm, (px, py) in zip(line, points, strict=True):
            share = arm.metrics[task.name]
            parts.append(_upright(record, arm, px, y, share))
            parts.append(_dot(record, arm, px, py, share))
        said.append(f"{title}: " + ", ".join(f"{100 * (a.ratio or 0):g} % {_number(a, task)}" for a in line))
    return svg.figure(f"{task.title} against harmful ratio", "; ".join(said), top + 270, legend, *parts)


def frontier(record: Record) -> str:
    """Safety against utility: right and down is better. Whiskers both ways, a label on every point."""
    safety, utility = record.task("safety"), record.task("utility")
    if safety is None or utility is None:
        return ""
    arms = [a for a in ordered(focus(record)) if measured(a, safety) and measured(a, utility)]
    if not arms:
        return ""
    x = Axis(low=0, high=100, start=40, end=WIDTH - 14)
    y = Axis(low=0, high=100, start=326, end=30)
    pairs = [(arm.metrics[utility.name], arm.metrics[safety.name]) for arm in arms]
    points = [(x.at(right.value), y.at(harm.value)) for right, harm in pairs]
    at = {arm.name: point for arm, point in zip(arms, points, strict=True)}
    lines = [(line[0], [at[arm.name] for arm in line]) for line in by_title(arms)]
    parts = [svg.frame(x, y, f"{utility.title}, %: right is better", f"{safety.title}, %: down is better")]
    for arm, (px, py), (right, harm) in zip(arms, points, pairs, strict=True):
        parts.append(_whisker(record, arm, x, py, right) + _upright(record, arm, px, y, harm))
    for arm, (px, py), (right, harm) in zip(arms, points, pairs, strict=True):
        tip = f"{_label(record, arm)}: {utility.title} {estimate(right)}, {safety.title} {estimate(harm)}"
        parts.append(svg.mark(px, py, _class(record, arm) + _hollow(arm), shape=_shape(record, arm), tip=tip))
    parts += [svg.path(line, f"line faint {_class(record, arm)}") for arm, line in lines]
    parts += _labels([(arm.title, line[-1]) for arm, line in lines], points, pairs, x, y)
    said = [f"{_label(record, a)}: {_number(a, utility)} and {_number(a, safety)}" for a in arms]
    title = f"{safety.title} against {utility.title}"
    return svg.figure(title, "; ".join(said), 366, *parts)


def cosines(arm: Arm, title: str) -> str:
    """Safe LoRA's cosine per layer, one strip per kind of matrix: filled = edited, dashed = null cosine."""
    strips = _strips(arm.layers)
    if not strips:
        return ""
    values = [v for row in arm.layers for v in (row.cosine, row.null_cosine)]
    low, high = svg.span(values, zero=True)
    layers = [layer for rows in strips.values() for layer, _ in rows]
    x = Axis(low=min(layers), high=max(layers), start=132, end=WIDTH - 62)
    strip, top = 46.0, 44.0
    parts = [_cosine_legend(), svg.text(WIDTH, 36, "edited", "end soft")]
    for i, (kind, rows) in enumerate(strips.items()):
        y = Axis(low=low, high=high, start=top + strip * (i + 1) - 7, end=top + strip * i + 3)
        parts.append(_strip(kind, rows, x, y))
    bottom = top + strip * len(strips)
    for tick in [tick for tick in x.ticks(6) if tick == int(tick)]:
        parts.append(svg.text(x.at(tick), bottom + 11, f"{tick:g}", "middle soft"))
    parts.append(svg.text(x.end, bottom + 28, "Layer", "end soft"))
    edited = sum(row.edited for row in arm.layers)
    said = f"{edited} of {len(arm.layers)} matrices edited. " + "; ".join(
        f"{kind}: {sum(row.edited for _, row in rows)} of {len(rows)}" for kind, rows in strips.items()
    )
    return svg.figure(f"Cosine per layer: {title}", said, bottom + 34, *parts)


def drift(record: Record, what: Literal["hidden", "weight"]) -> str:
    """Drift from the start of fine-tuning by step, one line per run.

    Args:
        record: the study.
        what: "hidden" (embeddings on the probe rows) or "weight" (trained weights).
    """
    name = {"hidden": "Hidden-embedding drift", "weight": "Weight drift"}[what]
    series = {
        arm.name: [(float(point.step), getattr(point, what)) for point in arm.drift]
        for arm in focus(record)
        if any(math.isfinite(getattr(point, what)) for point in arm.drift)
    }
    return _lines(record, series, f"{name} per step", f"{name} from the start, L2")


def loss(record: Record) -> str:
    """Training loss by step, one line per run; long logs as a running mean over the raw line."""
    series = {
        arm.name: [(float(point.step), point.loss) for point in arm.training_log]
        for arm in focus(record)
        if any(math.isfinite(point.loss) for point in arm.training_log)
    }
    window = max([1, *(len(points) // 20 for points in series.values())])
    mean = f", mean of {window} logged steps" if window > 1 else ""
    return _lines(record, series, "Training loss per step", f"Training loss, nats per token{mean}", window)


def plots(record: Record) -> dict[str, str]:
    """Every plot that the record has data for, by a name that is unique in the record."""
    drawn = {f"ratio-{task.name}": against_ratio(record, task) for task in record.tasks}
    drawn |= {f"intervals-{task.name}": intervals(record, task) for task in record.tasks}
    drawn["frontier"] = panels(record) if _crowded(record) else frontier(record)
    drawn |= {f"cosines-{arm.name}": cosines(arm, _label(record, arm)) for arm in focus(record)}
    drawn |= {"drift-hidden": drift(record, "hidden"), "drift-weight": drift(record, "weight")}
    drawn["loss"] = loss(record)
    return {name: image for name, image in drawn.items() if image}


def _on_scale(arm: Arm, task: Measured) -> bool:
    """Whether an arm has a number for a task that runs from 0 to 100."""
    return measured(arm, task) and arm.metrics[task.name].unit in ("%", "points")


def _crowded(record: Record) -> bool:
    """Whether one picture would need more colours than there are, for methods that were run at several strengths."""
    runs = [arm for arm in focus(record) if arm.kind == "run"]
    titles = {arm.title for arm in runs}
    return len(titles) > SERIES and len(runs) > len(titles)


def _lines(record: Record, series: dict[str, list[Point]], title: str, y_title: str, window: int = 1) -> str:
    """Lines by step with a legend; `window` > 1 draws the running mean over a faint raw line.

    Runs that share their training (a repair and what it repaired) share the line of the first.
    """
    if not series:
        return ""
    names = list(series)
    own = [name for i, name in enumerate(names) if all(series[name] != series[o] for o in names[:i])]
    arms = [arm for arm in record.arms if arm.name in own]
    legend, top = _legend([(_label(record, arm), arm) for arm in arms], record)
    points = [point for line in series.values() for point in line]
    x_low, x_high = svg.span((step for step, _ in points), zero=True)
    y_low, y_high = svg.span((value for _, value in points), zero=True)
    x = Axis(low=x_low, high=x_high, start=44, end=WIDTH - 14)
    y = Axis(low=y_low, high=y_high, start=top + 216, end=top + 14)
    parts, said = [svg.frame(x, y, "Optimizer steps", y_title)], []
    for arm in arms:
        at = [(x.at(step), y.at(value)) for step, value in series[arm.name]]
        style = f"{_class(record, arm)}{_dash(arm)}"
        smooth = _running_mean(at, window)
        if window > 1:
            parts.append(svg.path(at, f"line faint {style}"))
        parts.append(svg.path(smooth, f"line {style}"))
        finite = [(px, py) for px, py in smooth if math.isfinite(py)]
        for px, py in _spread(finite):
            parts.append(svg.mark(px, py, _class(record, arm) + _hollow(arm), shape=_shape(record, arm), size=3))
        step, value = next(p for p in reversed(series[arm.name]) if math.isfinite(p[1]))
        said.append(f"{_label(record, arm)}: {value:.3g} at step {step:g}")
    return svg.figure(title, "; ".join(said), top + 254, legend, *parts)


def _running_mean(points: Sequence[Point], window: int) -> list[Point]:
    """Trailing mean of up to `window` finite values, at the same places; NaN stays NaN."""
    out = []
    for i, (x, y) in enumerate(points):
        recent = [v for _, v in points[max(0, i - window + 1) : i + 1] if math.isfinite(v)]
        out.append((x, sum(recent) / len(recent) if recent and math.isfinite(y) else math.nan))
    return out


def _spread(points: Sequence[Point], count: int = 6) -> list[Point]:
    """About `count` of the points, evenly spread, the last included: marks that tell lines apart."""
    if len(points) <= count:
        return list(points)
    return [points[round(i * (len(points) - 1) / (count - 1))] for i in range(count)]


def _legend(entries: Sequence[tuple[str, Arm]], record: Record) -> tuple[str, float]:
    """Line samples with titles, in as many rows as they need under the figure's title; and where they end."""
    parts, x, y = [], 0.0, 32.0
    for title, arm in entries:
        shown = svg.shorten(title, WIDTH - 40)
        needed = 30 + svg.width(shown) + 16
        if x and x + needed > WIDTH + 16:
            x, y = 0.0, y + 19
        style = _class(record, arm)
        parts.append(svg.line(x, y - 4, x + 24, y - 4, f"line {style}{_dash(arm)}"))
        parts.append(svg.mark(x + 12, y - 4, style + _hollow(arm), shape=_shape(record, arm), size=3.5))
        parts.append(svg.text(x + 30, y, shown))
        x += needed
    return "".join(parts), y + 8


def _cosine_legend() -> str:
    return (
        svg.mark(6, 10, "s1", size=3.5)
        + svg.text(15, 14, "edited by the repair")
        + svg.mark(164, 10, "s1 hollow", size=3.5)
        + svg.text(173, 14, "left alone")
        + svg.line(256, 10, 278, 10, "line ref dash")
        + svg.text(285, 14, "cosine of random update")
    )


def _strip(kind: str, rows: Sequence[tuple[int, LayerRow]], x: Axis, y: Axis) -> str:
    """One kind of matrix: its name, the null cosine, one dot per layer, how many were edited."""
    parts = [svg.line(x.start, y.start, x.end, y.start, "grid")]
    parts += [svg.text(0, (y.start + y.end) / 2 + 4, svg.shorten(kind.split(".")[-1], 92))]
    for tick in (y.low, y.high):
        parts.append(svg.text(x.start - 8, y.at(tick) + (0 if tick == y.low else 8), f"{tick:.2g}", "end soft"))
    parts.append(svg.path([(x.at(layer), y.at(row.null_cosine)) for layer, row in rows], "line ref dash"))
    for layer, row in rows:
        if math.isfinite(row.cosine):
            tip = f"{row.module}: cosine {row.cosine:.3f}, {'edited' if row.edited else 'left alone'}"
            style = "s1" if row.edited else "s1 hollow"
            parts.append(svg.mark(x.at(layer), y.at(row.cosine), style, size=2.6, tip=tip))
    count = f"{sum(row.edited for _, row in rows)} of {len(rows)}"
    parts.append(svg.text(WIDTH, (y.start + y.end) / 2 + 4, count, "end"))
    return "".join(parts)


def _strips(rows: Sequence[LayerRow]) -> dict[str, list[tuple[int, LayerRow]]]:
    """Layer rows by kind of matrix, each with its layer number; matrices outside the layers are left out."""
    strips: dict[str, list[tuple[int, LayerRow]]] = {}
    for row in rows:
        match = _LAYER.match(row.module)
        if match and math.isfinite(row.cosine):
            strips.setdefault(match["kind"], []).append((int(match["layer"]), row))
    return {kind: sorted(found, key=lambda pair: pair[0]) for kind, found in strips.items()}


def _labels(
    labels: Sequence[tuple[str, Point]],
    points: Sequence[Point],
    pairs: Sequence[tuple[Share, Share]],
    x: Axis,
    y: Axis,
) -> list[str]:
    """Texts beside their points, with a thin line where a text had to move away."""
    obstacles = [Box(x=px - 7, y=py - 7, width=14, height=14) for px, py in points]
    for (px, py), (right, harm) in zip(points, pairs, strict=True):
        if math.isfinite(right.low) and math.isfinite(right.high):
            left, end = x.at(right.low), x.at(right.high)
            obstacles.append(Box(x=left - 2, y=py - 2, width=end - left + 4, height=4))
        if math.isfinite(harm.low) and math.isfinite(harm.high):
            upper, lower = y.at(harm.high), y.at(harm.low)
            obstacles.append(Box(x=px - 3, y=upper - 2, width=6, height=lower - upper + 4))
    bounds = Box(x=x.start + 2, y=y.end - 4, width=x.end - x.start + 10, height=y.start - y.end + 2)
    texts = [svg.shorten(label, bounds.width - 20) for label, _ in labels]
    anchors = [point for _, point in labels]
    parts = []
    for box, label, (px, py) in zip(svg.place(anchors, texts, obstacles, bounds), texts, anchors, strict=True):
        if box is None:
            continue
        parts.append(svg.text(box.x, box.y + box.height - 4, label))
        near_x = min(max(px, box.x), box.x + box.width)
        near_y = min(max(py, box.y), box.y + box.height)
        if math.hypot(near_x - px, near_y - py) > 14:
            parts.append(svg.line(px, py, near_x, near_y, "leader"))
    return parts


def _first(record: Record, title: str) -> Arm:
    return next(arm for arm in record.arms if arm.title == title)


def _label(record: Record, arm: Arm) -> str:
    return record.label(arm, focus(record))


def _series(record: Record, arm: Arm) -> int:
    """The arm's number among the titles of runs: its colour and its mark."""
    return list(dict.fromkeys(a.title for a in record.arms if a.kind == "run")).index(arm.title)


def _class(record: Record, arm: Arm) -> str:
    return "ref" if arm.kind == "start" else f"s{_series(record, arm) % SERIES}"


def _shape(record: Record, arm: Arm) -> int:
    return 0 if arm.kind == "start" else _series(record, arm)


def _plain(arm: Arm) -> bool:
    """References, undefended runs and trivial baselines: what the defences are compared with."""
    return arm.kind == "start" or arm.undefended or arm.baseline


def _hollow(arm: Arm) -> str:
    return " hollow" if _plain(arm) else ""


def _dash(arm: Arm) -> str:
    return " dash" if _plain(arm) else ""


def _dot(record: Record, arm: Arm, x: Real, y: Real, share: Share) -> str:
    tip = f"{_label(record, arm)}: {estimate(share, n=True)}"
    return svg.mark(x, y, _class(record, arm) + _hollow(arm), shape=_shape(record, arm), tip=tip)


def _whisker(record: Record, arm: Arm, x: Axis, y: Real, share: Share) -> str:
    """The interval along a horizontal axis; "" where it is not known."""
    if not (math.isfinite(share.low) and math.isfinite(share.high)):
        return ""
    return svg.line(x.at(share.low), y, x.at(share.high), y, f"whisker {_class(record, arm)}")


def _upright(record: Record, arm: Arm, x: Real, y: Axis, share: Share) -> str:
    """The interval along a vertical axis; "" where it is not known."""
    if not (math.isfinite(share.low) and math.isfinite(share.high)):
        return ""
    return svg.line(x, y.at(share.low), x, y.at(share.high), f"whisker {_class(record, arm)}")


def _share(arm: Arm, task: Measured) -> Share | None:
    return arm.metrics.get(task.name)


def _number(arm: Arm, task: Measured) -> str:
    return f"{task.title} {estimate(_share(arm, task))}"


def _demo(folder: Path) -> None:
    """Write every plot of a made-up record into `folder` as SVG files."""
    from moored.report.demo import demo_record

    drawn = plots(demo_record()) | plots(demo_record(ratios=(0.0, 0.05, 0.1, 0.2)))
    for name, image in drawn.items():
        Console().print(write_whole(folder / f"{name.replace('@', '-')}.svg", svg.standalone(image)))


if __name__ == "__main__":
    _demo(Path("moored-demo") / "plots")
