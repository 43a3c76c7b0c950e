# SPDX-License-Identifier: Apache-2.0
"""Drift layer by layer: how far weights and hidden states are from those of the model that tuning started from."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass

from moored.report import svg
from moored.report.record import Arm, DepthRow, WeightRow
from moored.report.svg import WIDTH, Axis
from moored.report.table import NOTHING, estimate

_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class Drift:
    """One layer.

    Args:
        layer: from 1; 0 are the embeddings, None the matrices that stand in no layer.
        weights: its matrices, in the order of the model.
        depth: its hidden states.
    """

    layer: int | None
    weights: tuple[WeightRow, ...] = ()
    depth: DepthRow | None = None

    @property
    def mean(self) -> float:
        """Mean ||dW|| / ||W|| over its matrices; NaN without any."""
        return sum(row.distance for row in self.weights) / len(self.weights) if self.weights else math.nan

    @property
    def largest(self) -> WeightRow | None:
        """The matrix that moved furthest."""
        return max(self.weights, key=lambda row: row.distance, default=None)


def by_layer(arm: Arm) -> list[Drift]:
    """What is known of each layer, in order; what stands in none last.

    Args:
        arm: of the record.
    """
    weights: dict[int | None, list[WeightRow]] = defaultdict(list)
    for row in arm.weights:
        number = _LAYER.search(row.module)
        weights[int(number[1]) + 1 if number else None].append(row)
    depths = {row.depth: row for row in arm.depths}
    numbers = sorted({layer for layer in (*weights, *depths) if layer is not None})
    outside: list[int | None] = [None] if None in weights else []
    return [
        Drift(layer=n, weights=tuple(weights.get(n, ())), depth=depths.get(n or 0) if n is not None else None)
        for n in [*numbers, *outside]
    ]


def rows(arm: Arm) -> list[list[str]]:
    """The table: layer, hidden states, angle, weights, the matrix that moved furthest."""
    found = []
    for drift in by_layer(arm):
        name = {0: "embeddings", None: "elsewhere"}.get(drift.layer, str(drift.layer))
        hidden = estimate(drift.depth.distance) if drift.depth else NOTHING
        angle = f"{drift.depth.angle:.3g}" if drift.depth else NOTHING
        largest = drift.largest
        furthest = f"{_kind(largest.module)} ({largest.distance:.3g})" if largest else NOTHING
        found.append([name, hidden, angle, f"{drift.mean:.3g}" if largest else NOTHING, furthest])
    return found


def hidden(arm: Arm) -> str:
    """The drift of hidden states by depth, with its 95 % interval; "" if not measured."""
    points = [(row.depth, row.distance) for row in arm.depths if math.isfinite(row.distance.value)]
    if len(points) < 2:
        return ""
    ends = [end for _, share in points for end in (share.value, share.low, share.high)]
    x, y = _axes(points[-1][0], ends)
    parts = [svg.frame(x, y, "Layer (0: embeddings)", "Hidden states: distance / norm")]
    for depth, share in points:
        if math.isfinite(share.low) and math.isfinite(share.high):
            parts.append(svg.line(x.at(depth), y.at(share.low), x.at(depth), y.at(share.high), "whisker s0"))
    parts.append(svg.path([(x.at(depth), y.at(share.value)) for depth, share in points], "line s0"))
    for depth, share in points:
        tip = f"layer {depth}: {estimate(share)}"
        parts.append(svg.mark(x.at(depth), y.at(share.value), "s0", size=2.6, tip=tip))
    said = "; ".join(f"layer {depth}: {estimate(share)}" for depth, share in points)
    return svg.figure("Drift of hidden states by layer", said, _HEIGHT, *parts)


def weights(arm: Arm) -> str:
    """The drift of weights by layer: a mark for each matrix, a line through the means; "" if not measured."""
    layers = [drift for drift in by_layer(arm) if drift.layer and drift.weights]
    if not layers:
        return ""
    x, y = _axes(layers[-1].layer or 1, [row.distance for drift in layers for row in drift.weights])
    parts = [svg.frame(x, y, "Layer", "Weights: norm of the change / norm")]
    for drift in layers:
        for row in drift.weights:
            tip = f"{row.module}: {row.distance:.3g}"
            parts.append(svg.mark(x.at(drift.layer or 0), y.at(row.distance), "s1 hollow", size=2.2, tip=tip))
    parts.append(svg.path([(x.at(drift.layer or 0), y.at(drift.mean)) for drift in layers], "line s1"))
    said = "; ".join(f"layer {drift.layer}: mean {drift.mean:.3g} of {len(drift.weights)} matrices" for drift in layers)
    return svg.figure("Drift of weights by layer", said, _HEIGHT, *parts)


_HEIGHT = 254.0


def _axes(last: int, values: list[float]) -> tuple[Axis, Axis]:
    low, high = svg.span(values, zero=True)
    return Axis(low=0, high=last, start=44, end=WIDTH - 14), Axis(low=low, high=high, start=216, end=24)


def _kind(module: str) -> str:
    """The name of a matrix within its layer."""
    return _LAYER.split(module)[-1]
