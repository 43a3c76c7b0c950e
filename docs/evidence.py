# SPDX-License-Identifier: Apache-2.0
"""Tables of what the catalogue's recipe measured, from the records in `results/`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from moored.report.matched import Matched, matched
from moored.report.pool import pool
from moored.report.record import Arm, Record
from moored.report.table import NOTHING, estimate, markdown, number

RESULTS = Path(__file__).parent.parent / "results"
SAFETY, OVER_REFUSAL, UTILITY = "harmful_requests", "over_refusal", "utility"
RATES = ("quarter_rate", "half_rate", "undefended")
"""Arms of `catalogue.yaml` that differ from the undefended one in the learning rate alone."""
NOTES = """*Smaller rate at this accuracy*: the harmful score of the undefended run whose learning rate is so small that
it has the accuracy of this line, between the three rates that were run (`moored compare --matched`); a defence earns
its place below it. *Passes*: forward and backward passes per step, alignment and tuning together, 1 = plain; what is
done once before the first step (Pharmacist reads every row of its pool) is in the seconds only. *Seconds* of training,
two runs side by side with a thread each: good for size, not for speed; [costs](costs.md) has the ratios. *GB*: peak
memory of the whole process. Brackets are 95 % intervals."""
MISSING = "Not finished; [`LOG.md`](../LOG.md) has what was measured so far."


def overview() -> str:
    """Every defence on a poisoned upload and on a clean one, the ones that gain most over a smaller rate first."""
    if not (records := named("catalogue", "catalogue-clean")):
        return MISSING
    poisoned, clean = records
    heads = ["Run", "harmful ↓", "over-refusal ↓", "accuracy ↑", "smaller rate at this accuracy: harmful"]
    heads += ["clean upload: harmful ↓", "accuracy ↑", "passes", "seconds", "GB"]
    return grid([heads, *(row(arm, poisoned, clean) for arm in ranked(poisoned))]) + f"\n\n{NOTES}"


def best() -> str:
    """The best defences, three seeds together."""
    seeds = [Record.load(path) for path in sorted(RESULTS.glob("catalogue-seed*.json"))]
    return markdown(pool(seeds)) if seeds else MISSING


def ratios() -> str:
    """The best defences at three shares of harmful rows, one seed."""
    records = named("catalogue-ratios")
    return markdown(records[0]) if records else MISSING


def search() -> str:
    """Every strength that was tried, on validation prompts."""
    records = named("catalogue-search")
    return markdown(records[0]) if records else MISSING


def published() -> str:
    """What the papers report, for orientation."""
    if not (records := named("catalogue-ratios")):
        return MISSING
    lines = [[each.label, each.source, f"{each.value:.1f} {each.unit}"] for each in records[0].reported]
    return grid([["harmful score", "source", "published"], *lines])


def named(*names: str) -> list[Record]:
    """The records of these names; none if one is missing."""
    paths = [RESULTS / f"{name}.json" for name in names]
    return [Record.load(path) for path in paths] if all(path.is_file() for path in paths) else []


def score(arm: Arm, task: str) -> float:
    """A share of an arm in %."""
    return arm.metrics[task].value


def at_smaller_rate(record: Record, arm: Arm) -> Matched:
    """An arm beside the undefended run whose learning rate is so small that it has the arm's accuracy.

    Args:
        record: of the catalogue's recipe.
        arm: one of its arms.
    """
    return matched([record.arm(name) for name in RATES], arm, safety=SAFETY, capability=UTILITY)


def ranked(record: Record) -> Iterable[Arm]:
    """Starts and baselines as they come, then defences by what they gain over a smaller learning rate."""
    gain = {arm.name: at_smaller_rate(record, arm).difference[0] for arm in record.arms}
    starts = [arm for arm in record.arms if arm.kind == "start" and not arm.methods]
    plain = [arm for arm in record.arms if arm.kind == "run" and (arm.baseline or not arm.methods)]
    defended = [arm for arm in record.arms if arm.kind == "run" and arm.methods and not arm.baseline]
    return [*starts, *plain, *sorted(defended, key=lambda arm: gain[arm.name])]


def row(arm: Arm, poisoned: Record, clean: Record) -> list[str]:
    """One line of `overview`."""
    unharmed = clean.arm(arm.name) if arm.kind == "run" else None
    beside = at_smaller_rate(poisoned, arm).curve if arm.kind == "run" and arm.name not in RATES else None
    return [
        arm.title,
        *(estimate(arm.metrics[task]) for task in (SAFETY, OVER_REFUSAL, UTILITY)),
        estimate(beside),
        number(score(unharmed, SAFETY) if unharmed else math.nan),
        number(score(unharmed, UTILITY) if unharmed else math.nan),
        number(arm.passes_per_step, 2),
        number(arm.seconds, 0),
        number(arm.peak_bytes / 1e9) if arm.peak_bytes else NOTHING,
    ]


def grid(rows: list[list[str]]) -> str:
    """A markdown table; the first row is its head."""
    head, *rest = rows
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---", *["--:"] * (len(head) - 1)], *rest])
