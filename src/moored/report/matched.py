# SPDX-License-Identifier: Apache-2.0
"""Safety at matched capability: what a defence is worth beside simply training less.

Two runs that differ in what they learnt cannot be compared by their safety alone: whoever trains less forgets less.
So a run is held against a *curve*: runs that differ in one thing that costs capability (learning rate, training
steps, strength of a repair), each a point (capability, safety). What the curve would score at the run's own capability
is read off between its points.

References:
    arXiv 2606.03648 for safety as a function of task accuracy, not at one arbitrary step.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from moored.errors import DataError
from moored.report.record import Arm, Measured, Share

DRAWS = 4000
"""Simulated measurements behind an interval: its ends are good to about 3 % of its width."""

Point = tuple[float | int, float | int]
"""Capability and safety, both in %."""


_BEYOND = {
    "": "",
    "below": " (its least capable run, which is more capable than this one)",
    "above": " (its most capable run, which is less capable than this one)",
}


@dataclass(frozen=True, kw_only=True)
class Matched:
    """A run beside a curve at the run's own capability; everything in the unit of the tasks (%).

    Args:
        capability: of the run, at which both are compared.
        curve: what the curve scores there, with its 95 % interval.
        difference: the run's score minus the curve's, with its 95 % interval; `n` is the run's.
        outside: on which side the run's capability lies outside the curve's, so that the curve's nearest end stands in;
            "" within it. A run "below" is not matched: training less may do as well.
    """

    capability: float
    curve: Share
    difference: tuple[float, float, float]
    outside: Literal["", "below", "above"]

    @property
    def noise(self) -> bool:
        """Whether the interval of the difference holds 0."""
        _, low, high = self.difference
        return low <= 0 <= high

    def record(self) -> dict[str, Any]:
        """As plain JSON."""
        value, low, high = self.difference
        return {
            "capability": self.capability,
            "curve": self.curve.model_dump(mode="json"),
            "difference": {"value": value, "low": low, "high": high},
            "outside": self.outside,
        }


def sentence(found: Matched, name: str, safety: Measured, capability: Measured) -> str:
    """What the numbers say.

    Args:
        found: of `matched`.
        name: of the run.
        safety: the task whose score was compared.
        capability: the task that both were matched on.
    """
    value, low, high = found.difference
    at = f"at its {capability.title} of {found.capability:.1f} % the curve has {found.curve.value:.1f} %"
    score = f"{name}: {safety.title} {found.curve.value + value:.1f} %; {at}"
    gap = f"{value:+.1f} points [{low:.1f}, {high:.1f}]"
    if found.noise:
        return f"{score}{_BEYOND[found.outside]}. {gap}, cannot be told from noise."
    good = (value < 0) == (safety.better == "lower")
    said = "not matched: the run is the less capable" if found.outside == "below" and good else "than the curve"
    return f"{score}{_BEYOND[found.outside]}. {gap}, {'better' if good else 'worse'} {said}."


def at_capability(points: Sequence[Point], capability: float | int) -> float:
    """The safety of a curve at a capability: linear between its points, that of the nearest beyond its ends.

    Args:
        points: at least one, in any order; of points with one capability, the one with the lowest score counts.
        capability: where to read, in %.

    Raises:
        DataError: there are no points.

    Example:
        >>> at_capability([(60.0, 10.0), (80.0, 50.0)], 70.0)
        30.0
    """
    if not points:
        raise DataError("a curve needs at least one point; name the runs that it goes through")
    lowest = dict(sorted(points, reverse=True))  # the last of equal places stays
    line = sorted(lowest.items())
    for (left, before), (right, after) in pairwise(line):
        if capability <= right:
            return before + (after - before) * max(0.0, capability - left) / (right - left)
    return float(line[-1][1])


def matched(curve: Sequence[Arm], arm: Arm, *, safety: str, capability: str, seed: int = 0) -> Matched:
    """A run against a curve at the run's own capability, with an interval.

    The interval carries all that was measured on samples, the place on the curve included: every share is drawn anew
    from what its n allows (Beta(k + 1/2, n - k + 1/2), Jeffreys' prior), the curve is read again, and the middle 95 %
    of the outcomes stand. Shares are drawn independently. Runs that were asked the same prompts vary less against
    each other than that, so the interval is rather too wide than too narrow.

    Args:
        curve: the runs that the curve goes through, at least one.
        arm: the run beside it.
        safety: name of the task whose score is compared, in %.
        capability: name of the task that both are matched on, in %.
        seed: of the draws.

    Raises:
        DataError: no runs, or one of them was not measured on a task, or not in %; or the run differs from the curve in
            more than its runs do among themselves (another harmful ratio).
    """
    if not comparable(curve, arm):
        raise DataError(
            f"arm {arm.name!r} was made under other conditions ({_spelt(arm.sweep)}) than the curve "
            f"({_spelt(_fixed(curve))}); compare within one"
        )
    runs = [(_share(run, capability), _share(run, safety)) for run in curve]
    place, score = _share(arm, capability), _share(arm, safety)
    value = at_capability([(x.value, y.value) for x, y in runs], place.value)
    draw = random.Random(seed)
    read: list[float] = []
    gains: list[float] = []
    for _ in range(DRAWS):
        there = at_capability([(_drawn(x, draw), _drawn(y, draw)) for x, y in runs], _drawn(place, draw))
        read.append(there)
        gains.append(_drawn(score, draw) - there)
    low, high = _middle(read, value)
    difference = score.value - value
    places = [x.value for x, _ in runs]
    return Matched(
        capability=place.value,
        curve=Share(value=value, low=low, high=high, n=min(y.n for _, y in runs)),
        difference=(difference, *_middle(gains, difference)),
        outside="below" if place.value < min(places) else "above" if place.value > max(places) else "",
    )


def comparable(curve: Sequence[Arm], arm: Arm) -> bool:
    """Whether a run has the value of the curve's runs on every axis of a grid on which those all agree.

    Args:
        curve: the runs that the curve goes through.
        arm: the run beside it; axes that it does not stand on do not matter.
    """
    return all(arm.sweep.get(axis, value) == value for axis, value in _fixed(curve).items())


def _fixed(curve: Sequence[Arm]) -> dict[str, float]:
    """The axes on which all the runs agree."""
    shared = set.intersection(*(set(run.sweep.items()) for run in curve)) if curve else set()
    return dict(sorted(shared))


def _spelt(sweep: Mapping[str, float]) -> str:
    return ", ".join(f"{axis} {value:g}" for axis, value in sweep.items()) or "no axis"


def _share(arm: Arm, task: str) -> Share:
    """A measured share of an arm; of several seeds n counts the prompts, which they share, once."""
    share = arm.metrics.get(task)
    if share is None or not math.isfinite(share.value) or not share.n:
        raise DataError(f"arm {arm.name!r} was not measured on {task}; it has {', '.join(arm.metrics) or 'nothing'}")
    if share.unit != "%":
        raise DataError(f"{task} is in {share.unit!r}; runs are matched on shares in %")
    return share.model_copy(update={"n": math.ceil(share.n / max(1, len(arm.per_seed)))})


def _drawn(share: Share, draw: random.Random) -> float:
    """The share as another sample of prompts might have had it, in %."""
    hits = share.value / 100 * share.n
    return 100 * draw.betavariate(hits + 0.5, share.n - hits + 0.5)


def _middle(values: Sequence[float], point: float) -> tuple[float, float]:
    """The middle 95 % of simulated values, widened to hold the point estimate: at 0 and 100 % it is no middle."""
    ordered = sorted(values)
    low, high = ordered[int(0.025 * len(ordered))], ordered[int(0.975 * len(ordered))]
    return min(low, point), max(high, point)
