# SPDX-License-Identifier: Apache-2.0
"""Tables and pictures of what the recipe `repairs` measured, from the records in `results/`."""

from __future__ import annotations

from collections.abc import Sequence

from evidence import MISSING, OVER_REFUSAL, SAFETY, UTILITY, grid, named, score

from moored.report import svg
from moored.report.matched import Matched, matched
from moored.report.panels import panels
from moored.report.record import Arm, Record
from moored.report.table import NOTHING, estimate, number

TASKS = (SAFETY, OVER_REFUSAL, UTILITY)


def strengths() -> str:
    """One poisoned adapter, every repair at every strength, those first that gain most over scaling the adapter."""
    if not (records := named("repairs")):
        return MISSING
    (record,) = records
    beside = {arm.name: beside_scaling(record, arm) for arm in repaired(record)}
    ranked = sorted(repaired(record), key=lambda arm: beside[arm.name].difference[0])
    heads = ["Repair", "harmful ↓", "over-refusal ↓", "accuracy ↑"]
    heads += ["scaled to this accuracy: harmful", "gain", "edited"]
    rows = [[record.label(arm), *scores(arm), NOTHING, NOTHING, edited(arm)] for arm in scaled(record)]
    rows += [[record.label(arm), *scores(arm), *gain(beside[arm.name]), edited(arm)] for arm in ranked]
    return grid([heads, *rows])


def ratios() -> str:
    """One strength of each repair, by the harmful share of the upload: harmful score / accuracy."""
    if not (records := named("repairs-ratios")):
        return MISSING
    (record,) = records
    shares = sorted({arm.sweep["ratio"] for arm in record.arms if "ratio" in arm.sweep})
    titles = dict.fromkeys(arm.title for arm in record.arms if arm.kind == "run")
    at = {(arm.title, arm.sweep.get("ratio")): arm for arm in record.arms if arm.kind == "run"}
    start = record.arm("aligned")
    heads = ["Repair", *(f"{share:.0%} harmful" if share < 1 else "nothing else" for share in shares)]
    rows = [[start.title, *[pair(start)] * len(shares)]]
    rows += [[title, *(pair(at[title, share]) for share in shares)] for title in titles]
    return grid([heads, *rows])


def safer() -> str:
    """An adapter with which nothing is wrong: what each repair does to it."""
    if not (records := named("repairs-safer")):
        return MISSING
    (record,) = records
    arms = [record.arm("aligned"), *(arm for arm in record.arms if arm.kind == "run")]
    return grid([["Repair", "harmful ↓", "over-refusal ↓", "accuracy ↑"], *([a.title, *scores(a)] for a in arms)])


def picture() -> str:
    """Safety against accuracy of every repair over its strengths, as an SVG file."""
    records = named("repairs")
    return svg.standalone(panels(records[0])) if records else ""


def scaled(record: Record) -> list[Arm]:
    """The adapter at every scale: the aligned start, the scales that were run, the adapter as it is."""
    runs = [arm for arm in record.arms if arm.kind == "run" and (arm.undefended or "scale" in arm.sweep)]
    return [record.arm("aligned"), *sorted(runs, key=lambda arm: arm.sweep.get("scale", 1.0))]


def repaired(record: Record) -> list[Arm]:
    """All other arms: repairs, and the baseline that drops modules."""
    scales = {arm.name for arm in scaled(record)}
    return [arm for arm in record.arms if arm.kind == "run" and arm.name not in scales]


def beside_scaling(record: Record, arm: Arm) -> Matched:
    """A repair beside the adapter scaled so far down that it has the same accuracy."""
    return matched(scaled(record), arm, safety=SAFETY, capability=UTILITY)


def scores(arm: Arm) -> list[str]:
    """The three estimates."""
    return [estimate(arm.metrics[task]) for task in TASKS]


def gain(found: Matched) -> Sequence[str]:
    """What scaling has at this accuracy, and the difference with its interval."""
    value, low, high = found.difference
    return estimate(found.curve), f"{value:+.0f} [{low:+.0f}, {high:+.0f}]"


def pair(arm: Arm) -> str:
    """Harmful score and accuracy."""
    return f"{number(score(arm, SAFETY), 0)} / {number(score(arm, UTILITY), 0)}"


def edited(arm: Arm) -> str:
    """How many weight matrices were changed."""
    return ", ".join(f"{repair.changed} of {repair.total}" for repair in arm.repairs) or NOTHING
