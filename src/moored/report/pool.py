# SPDX-License-Identifier: Apache-2.0
"""Several seeds of one study as one record.

The pooled value is the mean over seeds. The pooled interval reaches from the lowest lower end to the highest
upper end among the seeds: the seeds ask the same prompts, so adding up their n, as if the answers were
independent, would promise more than was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from moored.errors import DataError
from moored.report.record import Arm, Fired, Record, SeedResult, Share


def pool(records: Sequence[Record | Mapping[str, Any]]) -> Record:
    """One record from one record per seed, with every seed kept in `Arm.per_seed`.

    Examples, layers, drift and training log are those of the first seed.

    Args:
        records: at least one; the same tasks and arms, each with one seed of its own.

    Raises:
        DataError: no record, one that is pooled already, the same seed twice, or different tasks or arms.
    """
    all_seeds = [Record.read(record) for record in records]
    _check(all_seeds)
    first = all_seeds[0]
    if len(all_seeds) == 1:
        return first
    arms = [_arm([(record.seed, record.arm(arm.name)) for record in all_seeds]) for arm in first.arms]
    warnings = [warning for record in all_seeds for warning in record.warnings]
    if len({record.commit for record in all_seeds}) > 1:
        warnings.append("The seeds were run at different commits.")
    merged = first.model_copy(
        update={
            "seeds": [record.seed for record in all_seeds],
            "arms": arms,
            "stages": [stage for record in all_seeds for stage in record.stages],
            "seconds": sum(record.seconds for record in all_seeds),
            "warnings": list(dict.fromkeys(warnings)),
        }
    )
    return Record.read(merged.plain())


def _check(records: Sequence[Record]) -> None:
    if not records:
        raise DataError("no record to pool; give one per seed")
    first = records[0]
    for record in records:
        if len(record.seeds) > 1:
            raise DataError(f"record {record.name!r} is pooled already (seeds {record.seeds})")
        if record.tasks != first.tasks or [a.name for a in record.arms] != [a.name for a in first.arms]:
            raise DataError(f"seed {record.seed} has other tasks or arms than seed {first.seed}; cannot be pooled")
    seeds = [record.seed for record in records]
    if len(set(seeds)) < len(seeds):
        raise DataError(f"each record must have a seed of its own; got {seeds}")


def _arm(seeds: Sequence[tuple[int, Arm]]) -> Arm:
    """One arm over its seeds."""
    arms = [arm for _, arm in seeds]
    tasks = [task for task in arms[0].metrics if all(task in arm.metrics for arm in arms)]
    return arms[0].model_copy(
        update={
            "metrics": {task: _share([arm.metrics[task] for arm in arms]) for task in tasks},
            "scores": {task: _scores([arm.scores.get(task, {}) for arm in arms]) for task in tasks},
            "seconds": _mean([arm.seconds for arm in arms]),
            "passes_per_step": _mean([arm.passes_per_step for arm in arms]),
            "fired": {name: _fired([arm.fired.get(name, Fired(count=0)) for arm in arms]) for name in arms[0].fired},
            "per_seed": [SeedResult(seed=seed, metrics=arm.metrics, seconds=arm.seconds) for seed, arm in seeds],
        }
    )


def _share(shares: Sequence[Share]) -> Share:
    names = [name for name in shares[0].parts if all(name in share.parts for share in shares)]
    split = [share.disagreement for share in shares if share.disagreement is not None]
    return Share(
        value=_mean([share.value for share in shares]),
        low=_end(min, [share.low for share in shares]),
        high=_end(max, [share.high for share in shares]),
        n=sum(share.n for share in shares),
        unjudged=sum(share.unjudged for share in shares),
        unit=shares[0].unit,
        disagreement=_mean(split) if len(split) == len(shares) else None,
        parts={name: _share([share.parts[name] for share in shares]) for name in names},
    )


def _scores(seeds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean over seeds for each prompt that every seed asked; NaN where one could not be judged."""
    return {
        prompt: _mean([seed[prompt] for seed in seeds]) for prompt in seeds[0] if all(prompt in seed for seed in seeds)
    }


def _fired(seeds: Sequence[Fired]) -> Fired:
    """Counts added up; the mean weighted by them."""
    acted = [one for one in seeds if one.count]
    count = sum(one.count for one in acted)
    return Fired(
        count=count,
        mean=sum(one.mean * one.count for one in acted) / count if count else math.nan,
        min=_end(min, [one.min for one in acted]),
        max=_end(max, [one.max for one in acted]),
        unit=seeds[0].unit,
    )


def _mean(values: Sequence[float]) -> float:
    """The mean; NaN where a seed has none."""
    return sum(values) / len(values)


def _end(pick: Any, values: Sequence[float]) -> float:
    """The smallest or largest value; NaN where a seed has none."""
    return math.nan if not values or any(math.isnan(value) for value in values) else pick(values)
