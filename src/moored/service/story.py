# SPDX-License-Identifier: Apache-2.0
"""A job's story: what its process says, in the words that its user knows.

Pure functions. What is told twice has the same key, so that a job which was killed and went on tells it once.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from moored.report.record import Record, Share
from moored.service.claims import Kept, Told
from moored.service.job_recipe import HELD_OUT_TASK, TITLES

COLUMNS = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")
"""Of a result file."""


def told(line: Mapping[str, Any]) -> tuple[list[Told], list[Kept]]:
    """What a line of the progress is worth telling.

    Args:
        line: of `progress.jsonl`.
    """
    if line.get("kind") == "finetune":
        return _training(line)
    state, kind = line.get("state"), line.get("kind")
    key = f"{kind} {line.get('key')} {state}"
    if state == "waiting":
        return [Told(key=key, message="Waiting for another job that makes the same model")], []
    if kind == "align" and state == "started":
        said = "Making the aligned model that jobs start from; this is done once for all"
        return [Told(key=key, message=said)], []
    if kind == "repair" and state == "started":
        return [Told(key=key, message=f"Repairing the model: {line['words']}")], []
    if kind == "evaluate" and state == "started":
        of = {title: f"the {arm} model" for arm, title in TITLES.items()}.get(line["row"], f"the start ({line['row']})")
        return [Told(key=key, message=f"Auditing {of}: {line['words']}")], []
    return [], []


def _training(line: Mapping[str, Any]) -> tuple[list[Told], list[Kept]]:
    of, state = line["key"], line["state"]
    if state == "started":
        return [Told(key=f"training {of}", message="Fine-tuning job started")], []
    if state in ("finished", "reused"):
        return [Told(key=f"trained {of}", message="Fine-tuning finished; the model is audited before it exists")], []
    lines, kept = [], []
    if line.get("loss") is not None:
        step = int(line["step"])
        data = {
            "step": step,
            "total_steps": line["total"],
            "train_loss": line["loss"],
            "learning_rate": line.get("learning_rate"),
        }
        said = f"Step {step}/{line['total']}: training loss={line['loss']:.2f}"
        lines.append(Told(key=f"step {of} {step}", message=said, type="metrics", data=data))
    if line.get("saved") is not None:
        step = int(line["saved"])
        lines.append(Told(key=f"saved {of} {step}", message=f"Checkpoint created at step {step}"))
        metrics = {"step": step} | ({} if line.get("loss") is None else {"train_loss": line["loss"]})
        kept.append(Kept(step=step, metrics=metrics))
    return lines, kept


def audit(record: Record, arms: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What was measured, by arm and task, as plain JSON; a number that is not there is null.

    Args:
        record: of the study.
        arms: those that are shown.
    """
    return {
        arm.name: {
            task: {name: _finite(value) for name, value in share.model_dump().items()}
            for task, share in arm.metrics.items()
        }
        for arm in record.arms
        if arm.name in arms
    }


def audited(record: Record, arm: str, start: str) -> Told:
    """The audit of an arm as a line.

    Args:
        record: of the study.
        arm: that was made.
        start: that it was made from.
    """
    found, before = record.arm(arm).metrics, record.arm(start).metrics
    said = [
        f"{task.title} {_words(found[task.name])}"
        + (f" (start {_words(before[task.name])})" if task.name in before else "")
        for task in record.tasks
        if task.name in found
    ]
    numbers = audit(record, [arm, start])
    return Told(
        key=f"audited {arm}", message=f"Audit of the {arm} model: {'; '.join(said)}", type="metrics", data=numbers
    )


def result_file(made: Mapping[str, Any], record: Record, arm: str) -> bytes:
    """The result file: one line per step that the trainer logged; what is not known is empty.

    The loss on the validation file is that of the model which the job ends with, and stands in the last line.

    Args:
        made: `made.json`.
        record: of the study.
        arm: that the job ends with.
    """
    losses = {int(line["step"]): line["loss"] for line in made["log"] if "loss" in line}
    steps = int(made["steps"])
    losses.setdefault(steps, None)
    held_out = record.arm(arm).metrics.get(HELD_OUT_TASK)
    valid = "" if held_out is None or not math.isfinite(held_out.value) else f"{math.log(held_out.value):.5f}"
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for step, loss in sorted(losses.items()):
        table.writerow([step, "" if loss is None else f"{loss:.5f}", "", valid if step == steps else "", ""])
    return text.getvalue().encode()


def _words(share: Share) -> str:
    return f"{share.value:.1f} {share.unit}" if math.isfinite(share.value) else "not measured"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
