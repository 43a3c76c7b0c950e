# SPDX-License-Identifier: Apache-2.0
"""The loss of a job while it trains, as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

from moored.report import svg
from moored.report.svg import WIDTH, Axis, Real

_TOP, _BOTTOM = 30.0, 190.0
_MARKED = 40
"""Steps up to which every one has a mark of its own."""


def loss(points: Sequence[tuple[Real, Real]], total: int) -> str:
    """Training loss by optimizer step.

    Args:
        points: step and loss, in order; a loss that is not finite breaks the line.
        total: steps there will be; 0 if that is not known.

    Returns:
        An SVG figure; "" if there is nothing to draw.
    """
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    if not finite:
        return ""
    x_low, x_high = svg.span([*(step for step, _ in finite), total], zero=True)
    y_low, y_high = svg.span((value for _, value in finite), zero=True)
    x = Axis(low=x_low, high=x_high, start=44, end=WIDTH - 14)
    y = Axis(low=y_low, high=y_high, start=_BOTTOM, end=_TOP)
    parts = [svg.frame(x, y, "Optimizer steps", "Training loss")]
    parts.append(svg.path([(x.at(step), y.at(value)) for step, value in points], "line s1"))
    marked = finite if len(finite) <= _MARKED else finite[-1:]
    for step, value in marked:
        parts.append(svg.mark(x.at(step), y.at(value), "s1", size=2.6, tip=f"step {step:g}: {value:.3g}"))
    (first, high), (last, low) = finite[0], finite[-1]
    said = f"{high:.3g} at step {first:g}, {low:.3g} at step {last:g}"
    return svg.figure("Training loss by optimizer step", said, _BOTTOM + 42, *parts)
