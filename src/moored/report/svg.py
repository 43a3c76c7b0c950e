# SPDX-License-Identifier: Apache-2.0
"""What the plots are drawn with: escaped elements, axes, wrapped text, labels that do not overlap.

Everything is a pure function of its arguments and returns a string. Colours and line weights are classes
whose rules stand in `STYLE`, so that one page defines them once, for light, dark and print.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

Real = float | int
"""A number; run-time type checks do not take an int for a float."""

WIDTH = 480
"""Width of every figure in SVG units; small, so that the text stays readable on a 400 px screen."""

FONT = 13
"""Size of the text in SVG units."""

SERIES = 8
"""How many series have a colour and a mark of their own; later ones start over."""

_LIGHT = ("#b8431f", "#2a62a8", "#14776f", "#6d4aa3", "#8a6a00", "#a8326f", "#4f6b1c", "#5b6472")
_DARK = ("#ff8f66", "#7db4ff", "#4fc7bb", "#bda0f2", "#dcb84a", "#f08cbc", "#a9c66a", "#aab4c2")


def _colours(colours: Sequence[str]) -> str:
    return "".join(f"--s{i}:{colour};" for i, colour in enumerate(colours))


STYLE = (
    f":root{{{_colours(_LIGHT)}--ref:#6b7280;--grid:#d9dce1;--paper:#fff}}"
    f"@media screen and (prefers-color-scheme:dark){{:root{{{_colours(_DARK)}"
    "--ref:#9aa3b0;--grid:#343a44;--paper:#15181d}}"
    "svg.plot{display:block;width:100%;height:auto;color:inherit}"
    f".plot text{{font:{FONT}px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;fill:currentColor}}"
    ".plot .soft{opacity:.72}.plot .strong{font-weight:600}.plot .end{text-anchor:end}"
    ".plot .middle{text-anchor:middle}"
    ".plot .grid{stroke:var(--grid);stroke-width:1}"
    ".plot .axis{stroke:currentColor;stroke-width:1;opacity:.45}"
    + "".join(f".plot .s{i}{{--c:var(--s{i})}}" for i in range(SERIES))
    + ".plot .ref{--c:var(--ref)}"
    ".plot .line{fill:none;stroke:var(--c);stroke-width:1.8;stroke-linejoin:round}"
    ".plot .faint{opacity:.25;stroke-width:1}"
    ".plot .dash{stroke-dasharray:5 3}.plot .whisker{stroke:var(--c);stroke-width:1.6;fill:none}"
    ".plot .mark{fill:var(--c);stroke:var(--c);stroke-width:1.6}.plot .hollow{fill:var(--paper)}"
    ".plot .leader{stroke:currentColor;stroke-width:.8;opacity:.5}"
)
"""The rules of all plots; a page holds them once."""


def number(value: Real) -> str:
    """A coordinate with two decimals at most."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def element(tag: str, *content: str, **attributes: str | Real) -> str:
    """One element. `content` must be markup already; attributes are escaped here.

    Args:
        tag: the element's name.
        content: markup inside it.
        attributes: "class_" gives `class`, underscores give dashes.
    """
    pairs = (
        f" {name.rstrip('_').replace('_', '-')}={quoteattr(value if isinstance(value, str) else number(value))}"
        for name, value in attributes.items()
    )
    inner = "".join(content)
    return f"<{tag}{''.join(pairs)}>{inner}</{tag}>" if inner else f"<{tag}{''.join(pairs)}/>"


def text(x: Real, y: Real, content: str, class_: str = "") -> str:
    """Escaped text with its baseline at `y`."""
    if class_:
        return element("text", escape(content), x=x, y=y, class_=class_)
    return element("text", escape(content), x=x, y=y)


def line(x1: Real, y1: Real, x2: Real, y2: Real, class_: str) -> str:
    """A straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def path(points: Sequence[tuple[Real, Real]], class_: str) -> str:
    """A line through `points`; "" for fewer than two. Points with NaN break the line."""
    pieces, pen = [], "M"
    for x, y in points:
        if not (math.isfinite(x) and math.isfinite(y)):
            pen = "M"
            continue
        pieces.append(f"{pen}{number(x)} {number(y)}")
        pen = "L"
    return element("path", d="".join(pieces), class_=class_) if len(pieces) > 1 else ""


_SHAPES = (
    "M{0} 0A{0} {0} 0 1 1 -{0} 0A{0} {0} 0 1 1 {0} 0Z",  # circle
    "M-{0} -{0}H{0}V{0}H-{0}Z",  # square
    "M0 -{1}L{1} {0}H-{1}Z",  # triangle
    "M0 -{1}L{1} 0L0 {1}L-{1} 0Z",  # diamond
)


def mark(x: Real, y: Real, class_: str, *, shape: int = 0, size: Real = 4.5, tip: str = "") -> str:
    """A data point: circle, square, triangle or diamond by `shape`, with a tooltip."""
    outline = _SHAPES[shape % len(_SHAPES)].format(number(size), number(size * 1.25))
    inside = element("title", escape(tip)) if tip else ""
    return element("path", inside, d=outline, transform=f"translate({number(x)} {number(y)})", class_=f"mark {class_}")


def figure(title: str, description: str, height: Real, *parts: str) -> str:
    """A whole plot: an accessible image as wide as its container.

    Args:
        title: the name that a screen reader says.
        description: what the picture shows, in words, numbers included.
        height: in SVG units; the width is `WIDTH`.
        parts: the markup inside.
    """
    return element(
        "svg",
        element("title", escape(title)),
        element("desc", escape(description)),
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {number(height)}",
        class_="plot",
        role="img",
    )


_ALONE = (
    ".plot{background:var(--paper);color:#16181d}@media screen and (prefers-color-scheme:dark){.plot{color:#e6e9ee}}"
)


def standalone(svg: str) -> str:
    """The same figure as a file of its own, with `STYLE` inside, and paper and ink: no page gives them."""
    return svg.replace("<title>", f"<style>{STYLE}{_ALONE}</style><title>", 1)


def ticks(low: Real, high: Real, count: int = 5) -> list[Real]:
    """About `count` round numbers (1, 2 or 5 times a power of ten) in low..high.

    Example:
        >>> ticks(0, 100)
        [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]
    """
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    digits = max(0, 1 - math.floor(math.log10(step)))
    return [round(i * step, digits) + 0.0 for i in range(first, last + 1)]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A linear scale.

    Args:
        low: data value at `start`.
        high: data value at `end`.
        start: position of `low` in SVG units.
        end: position of `high`.
    """

    low: Real
    high: Real
    start: Real
    end: Real

    def at(self, value: Real) -> float:
        """Position of a data value; the middle if the axis has no length."""
        if self.high == self.low:
            return (self.start + self.end) / 2
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[Real]:
        """Round numbers on the axis."""
        return ticks(self.low, self.high, count)


def span(values: Iterable[Real], *, zero: bool = False) -> tuple[Real, Real]:
    """Lower and upper end of an axis over the finite values, never of length 0; `zero` includes 0."""
    finite = [value for value in values if math.isfinite(value)]
    if zero or not finite:
        finite.append(0.0)
    low, high = min(finite), max(finite)
    if high > low:
        return low, high
    return (low, low + 1.0) if zero or low == 0 else (low - abs(low) / 2, low + abs(low) / 2)


def frame(x: Axis, y: Axis, x_title: str, y_title: str) -> str:
    """Grid, tick labels and titles of a plot with two axes (both titles carry the unit)."""
    parts = []
    for tick in y.ticks():
        parts.append(line(x.start, y.at(tick), x.end, y.at(tick), "grid"))
        parts.append(text(x.start - 8, y.at(tick) + 4, f"{tick:g}", "end soft"))
    for tick in x.ticks():
        parts.append(line(x.at(tick), y.start, x.at(tick), y.start + 4, "axis"))
        parts.append(text(x.at(tick), y.start + 17, f"{tick:g}", "middle soft"))
    parts.append(line(x.start, y.start, x.end, y.start, "axis"))
    parts.append(text(x.end, y.start + 34, x_title, "end soft"))
    parts.append(text(0, 12, y_title, "strong"))
    return "".join(parts)


def width(content: str) -> Real:
    """Estimated width of a text in SVG units: generous, so that what is said to fit does fit."""
    narrow = sum(char in "iljtfI.,:;'|![]() " for char in content)
    return FONT * (0.64 * (len(content) - narrow) + 0.36 * narrow)


def shorten(content: str, room: Real) -> str:
    """`content`, cut with an ellipsis where it is wider than `room`."""
    if width(content) <= room:
        return content
    while content and width(content + "…") > room:
        content = content[:-1]
    return content.rstrip() + "…"


def wrap(content: str, room: Real, lines: int = 2) -> list[str]:
    """`content` in at most `lines` lines no wider than `room`; the last is cut with an ellipsis."""
    out: list[str] = []
    words = content.split()
    while words and len(out) < lines - 1:
        taken = 1
        while taken < len(words) and width(" ".join(words[: taken + 1])) <= room:
            taken += 1
        out.append(shorten(" ".join(words[:taken]), room))
        words = words[taken:]
    if words:
        out.append(shorten(" ".join(words), room))
    return out


@dataclass(frozen=True, kw_only=True)
class Box:
    """A rectangle in SVG units: `x`, `y` is the upper left corner."""

    x: Real
    y: Real
    width: Real
    height: Real

    def overlaps(self, other: Box) -> bool:
        """Whether the two share any area."""
        return (
            self.x < other.x + other.width
            and other.x < self.x + self.width
            and self.y < other.y + other.height
            and other.y < self.y + self.height
        )


def place(
    points: Sequence[tuple[Real, Real]], labels: Sequence[str], obstacles: Sequence[Box], bounds: Box
) -> list[Box | None]:
    """Where to write a label for each point: as near as possible, over no obstacle and no other label.

    Args:
        points: positions of the data points.
        labels: one text per point.
        obstacles: areas to keep free, the marks themselves included.
        bounds: the area that labels may use.

    Returns:
        One box per label; None where no free place is left (the caller falls back to a tooltip).
    """
    taken = list(obstacles)
    boxes: list[Box | None] = []
    for (px, py), label in zip(points, labels, strict=True):
        w, h = width(label), FONT * 1.25
        xs = [px + 9, px - 9 - w, px - w / 2, *_steps(bounds.x, bounds.width - w, 10)]
        ys = [py - h / 2, py - h - 7, py + 7, *_steps(bounds.y, bounds.height - h, 6)]
        found = sorted(
            (math.hypot(max(x - px, 0.0, px - x - w), max(y - py, 0.0, py - y - h)), x, y) for x in xs for y in ys
        )
        boxes.append(_first_free((Box(x=x, y=y, width=w, height=h) for _, x, y in found), taken, bounds))
        taken += [box for box in boxes[-1:] if box]
    return boxes


def _steps(start: Real, length: Real, step: int) -> list[Real]:
    return [start + i * step for i in range(max(0, int(length // step) + 1))]


def _first_free(boxes: Iterable[Box], taken: Sequence[Box], bounds: Box) -> Box | None:
    """The first box inside `bounds` that overlaps nothing, or None."""
    for box in boxes:
        if _inside(box, bounds) and not any(box.overlaps(other) for other in taken):
            return box
    return None


def _inside(box: Box, bounds: Box) -> bool:
    return (
        box.x >= bounds.x
        and box.y >= bounds.y
        and box.x + box.width <= bounds.x + bounds.width
        and box.y + box.height <= bounds.y + bounds.height
    )
