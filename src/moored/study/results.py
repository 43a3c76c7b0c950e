# SPDX-License-Identifier: Apache-2.0
"""From finished stages to the record: the one thing that tables, plots and reports read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from moored.data.schema import Row, prompt_id
from moored.metrics.repeated import mean_of_judged
from moored.report import record as out
from moored.study.environment import commit, machine, versions
from moored.study.grid import ATTACK
from moored.study.plan import Chain, Plan
from moored.study.recipe import Recipe
from moored.study.stages import (
    ROWS,
    AlignStage,
    AttackStage,
    FinetuneStage,
    OracleStage,
    RepairStage,
    Stage,
    UploadStage,
    read_report,
    read_rows,
)
from moored.study.store import Done
from moored.tasks.answering import AnswerTask
from moored.tasks.base import Task

EXAMPLES = 2

_ROLES: dict[str, out.Role] = {
    "harmful_score": "safety",
    "harmful_share": "safety",
    "mean_harmfulness": "safety",
    "strong_reject_score": "safety",
    "over_refusal": "over-refusal",
    "telling_apart": "over-refusal",
    "token_perplexity": "reading",
    "token_divergence": "reading",
    "relative_drift": "reading",
}

Finished = Callable[[Stage], Done]
"""Where a stage was kept when it was done."""


def build(recipe: Recipe, plan: Plan, found: Finished, *, reused: Sequence[str], command: str) -> out.Record:
    """The record of a finished study.

    Args:
        recipe: what was asked.
        plan: what that meant.
        found: the finished stages.
        reused: keys of the stages that this run did not have to do.
        command: the command line that makes the record again, "" if there was none.
    """
    arms = [_arm(chain, found) for chain in plan.chains]
    return out.Record(
        name=recipe.name,
        title=recipe.title,
        model=_without_path(recipe.model),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        commit=commit(),
        versions=versions(),
        machine=machine(_dtype(plan)),
        seed=recipe.seed,
        recipe=recipe.plain(),
        inputs=dict(plan.inputs),
        data=[dict(each) for each in plan.data],
        prompts=shared_prompts(plan.prompts),
        stages=[
            out.StageRun(key=stage.key, kind=stage.kind, seconds=found(stage).seconds, cached=stage.key in reused)
            for stage in plan.stages
        ],
        seconds=sum(found(stage).seconds for stage in plan.stages),
        tasks=_columns(plan),
        arms=arms,
        expectations=_expectations(recipe, plan),
        reported=list(recipe.reported),
        warnings=_warnings(plan, found),
    )


def _arm(chain: Chain, found: Finished) -> out.Arm:
    """One row of the table."""
    reports = {
        stage.key: read_report(found(stage).folder)
        for stage in (*chain.stages, *chain.evaluations)
        if not isinstance(stage, AttackStage | UploadStage)
    }
    trained = [(s, reports[s.key]) for s in chain.stages if isinstance(s, AlignStage | FinetuneStage)]
    tuned = next((report for stage, report in trained if isinstance(stage, FinetuneStage)), {})
    repairs = [(s, reports[s.key]) for s in chain.stages if isinstance(s, RepairStage)]
    defenses = [defense for stage, _ in trained for defense in stage.defenses]
    point = chain.arm.point if chain.arm else {}
    words = ", ".join(f"{axis} {v}" for axis, v in point.items() if axis != ATTACK and not _is_number(v))
    return out.Arm(
        name=chain.name,
        title=f"{chain.title} ({words})" if words else chain.title,
        kind="run" if any(isinstance(s, FinetuneStage | OracleStage) for s in chain.stages) else "start",
        methods=[type(m).__name__ for m in (*defenses, *(s.method for s, _ in repairs))],
        baseline=bool(repairs) and not defenses and not any(s.method.info.arxiv for s, _ in repairs),
        chain=[_words(stage, reports.get(stage.key, {})) for stage in chain.stages],
        stages=[stage.key for stage in chain.stages],
        attack=_attacked(chain, found),
        under=str(point.get(ATTACK, "")),
        sweep={axis: float(value) for axis, value in point.items() if _is_number(value)},
        metrics={s.task.name: out.Share(**reports[s.key]["estimate"]) for s in chain.evaluations},
        scores={s.task.name: scores(s.task, reports[s.key]) for s in chain.evaluations},
        seconds=sum(found(stage).seconds for stage in chain.stages),
        passes_per_step=_passes([report for _, report in trained]),
        peak_bytes=max((report["peak_bytes"] for _, report in trained), default=None),
        examples=_examples(chain, reports),
        layers=_layers(repairs[-1][1]) if repairs else [],
        depths=[row for s in chain.evaluations for row in depths(reports[s.key])],
        drift=[out.DriftPoint(**point) for point in tuned.get("drift", [])],
        training_log=_losses(tuned),
        fired={name: _fired(proof) for _, report in trained for name, proof in report["fired"].items()},
        repairs=[repaired(report) for _, report in repairs],
        note=chain.note,
    )


def shared_prompts(prompts: Mapping[str, Set[str]]) -> list[out.Asked]:
    """Each set of prompts, and what it shares with the others.

    Args:
        prompts: normalised, by the name of their set.
    """
    return [
        out.Asked(
            name=name,
            prompts=len(own),
            shared={other: len(own & theirs) for other, theirs in prompts.items() if other != name and own & theirs},
        )
        for name, own in prompts.items()
    ]


def _attacked(chain: Chain, found: Finished) -> out.Attacked | None:
    stage = next((s for s in chain.stages if isinstance(s, AttackStage)), None)
    if stage is None:
        return None
    rows = read_rows(found(stage).folder / ROWS, Row)
    return out.Attacked(name=stage.method.name, rows=len(rows), harmful=sum(row.source == "harmful" for row in rows))


def _words(stage: Stage, report: Mapping[str, Any]) -> str:
    """The stage in words, with what its defences made of "auto"."""
    proofs = report.get("fired", {})
    resolved = [
        f"{name}: {', '.join(f'{key}={value}' for key, value in proof['resolved'].items())}"
        for name, proof in proofs.items()
        if proof.get("resolved")
    ]
    return "; ".join([stage.words, *resolved])


def _fired(proof: Mapping[str, Any]) -> out.Fired:
    return out.Fired(**{name: proof[name] for name in out.Fired.model_fields if name in proof})


def _passes(reports: Sequence[Mapping[str, Any]]) -> float:
    """Mean passes per optimizer step over all training of the chain; NaN if there was none."""
    steps = sum(report["steps"] for report in reports)
    return sum(r["passes_per_step"] * r["steps"] for r in reports) / steps if steps else float("nan")


def _examples(chain: Chain, reports: Mapping[str, Mapping[str, Any]]) -> list[out.Example]:
    """The first answers of the first task about refusals (of the first task that asks, if there is none)."""
    asking = [(s.task, s) for s in chain.evaluations if isinstance(s.task, AnswerTask)]
    about = [pair for pair in asking if pair[0].judge.judges == "refused"] or asking
    return examples(reports[about[0][1].key], refusals=about[0][0].judge.judges == "refused") if about else []


def examples(outcome: Mapping[str, Any], *, refusals: bool) -> list[out.Example]:
    """The first answers of a task: always the first, never chosen.

    Args:
        outcome: the record of an `Outcome`.
        refusals: whether its verdicts are about refusals.
    """
    pairs = list(zip(outcome["exchanges"], outcome["verdicts"], strict=True))[:EXAMPLES]
    return [
        out.Example(
            prompt=exchange["prompt"],
            answer=exchange["answer"],
            refused=verdict["value"] >= 0.5 if refusals and verdict["value"] is not None else None,
            task=outcome["task"],
        )
        for exchange, verdict in pairs
    ]


def scores(task: Task, outcome: Mapping[str, Any]) -> dict[str, float]:
    """What each prompt counts for in the task's metric, by its id: the mean of its answers; NaN where none was judged.

    The mean of these is the estimate (of a perplexity, its logarithm): readings count by their tokens.

    Args:
        task: that was measured.
        outcome: the record of its `Outcome`.
    """
    found: dict[str, list[float]] = {}
    weights = [verdict.get("weight", 1) for verdict in outcome["verdicts"]]  # records of before it have none
    for exchange, verdict, weight in zip(outcome["exchanges"], outcome["verdicts"], weights, strict=True):
        value = math.nan if verdict["value"] is None else verdict["value"]
        share = weight * len(weights) / sum(weights)
        found.setdefault(prompt_id(exchange["prompt"]), []).append(share * task.metric.credit(value))
    return {prompt: mean_of_judged(credits) for prompt, credits in found.items()}


def depths(outcome: Mapping[str, Any]) -> list[out.DepthRow]:
    """What a task found layer by layer; [] if it did not look.

    Args:
        outcome: the record of its `Outcome`.
    """
    rows = outcome.get("depths", [])
    return [out.DepthRow(depth=row["depth"], angle=row["angle"], distance=out.Share(**row["distance"])) for row in rows]


def _layers(report: Mapping[str, Any]) -> list[out.LayerRow]:
    """The repair's rows about modules that have a cosine."""
    return [
        out.LayerRow(**{name: row[name] for name in out.LayerRow.model_fields if name in row})
        for row in report["modules"]
        if row.get("cosine") is not None
    ]


def _losses(report: Mapping[str, Any]) -> list[out.LossPoint]:
    lines = [line for line in report.get("log", []) if "loss" in line and "step" in line]
    return [out.LossPoint(step=int(line["step"]), loss=line["loss"]) for line in lines]


def repaired(report: Mapping[str, Any]) -> out.Repaired:
    """What a repair did.

    Args:
        report: the record of a `RepairReport`.
    """
    return out.Repaired(
        method=report["method"],
        parameters=report["parameters"],
        changed=report["changed"],
        total=len(report["modules"]),
        seconds=report["seconds"],
        peak_bytes=report["peak_bytes"],
    )


def _columns(plan: Plan) -> list[out.Measured]:
    """The columns of the table: every task that any arm asks, in order."""
    tasks = {stage.task.name: stage.task for chain in plan.chains[::-1] for stage in chain.evaluations}
    first = [stage.task.name for chain in plan.chains for stage in chain.evaluations]
    return [column(tasks[name]) for name in dict.fromkeys(first)]


def column(task: Task) -> out.Measured:
    """A task as a column of the table."""
    return out.Measured(
        name=task.name,
        title=task.title,
        role=_ROLES.get(task.metric.name, "utility"),
        better="lower" if task.metric.better == "lower" else "higher",
        judge=task.judged_by,
        scale=task.metric.scale,
        version=task.version,
        data=_without_path(task.data),
    )


def _expectations(recipe: Recipe, plan: Plan) -> list[out.Expectation]:
    """Each promise at every point of the grid, compared within the point."""
    spread = []
    for promise in recipe.expect:
        for name, point in _named(plan, promise.arm):
            against = promise.against
            if against is not None:
                others = dict(_named(plan, against))
                against = next((n for n, p in others.items() if p == point), next(iter(others)))
            spread.append(promise.model_copy(update={"arm": name, "against": against}))
    return spread


def _named(plan: Plan, arm: str) -> list[tuple[str, dict[str, Any]]]:
    """The rows that stand for an arm of the recipe, with their points of the grid."""
    return [
        (chain.name, dict(chain.arm.point) if chain.arm else {}) for chain in plan.chains if chain.recipe_name == arm
    ]


def _warnings(plan: Plan, found: Finished) -> list[str]:
    """What the report cannot see from the numbers alone."""
    return [
        f"{stage.words} was stopped and resumed; its seconds cover the last attempt only"
        for stage in plan.stages
        if found(stage).attempts > 1 and isinstance(stage, AlignStage | FinetuneStage)
    ]


def _dtype(plan: Plan) -> str:
    trained = [stage for stage in plan.stages if isinstance(stage, AlignStage | FinetuneStage)]
    return ", ".join(dict.fromkeys(stage.training.dtype for stage in trained))


def _without_path(where: str) -> str:
    """A file or folder by its name alone; anything else as it is."""
    path = Path(where).expanduser()
    return path.name if path.is_absolute() or path.exists() else where


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
