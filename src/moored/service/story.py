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
from moored.service.job_recipe import HELD_OUT_TASKS, TITLES

COLUMNS: Mapping[str, Mapping[str, str]] = {
    "supervised": {
        "step": "step",
        "train_loss": "loss",
        "train_accuracy": "mean_token_accuracy",
        "valid_loss": "",
        "valid_mean_token_accuracy": "",
    },
    "dpo": {
        "step": "step",
        "train_loss": "loss",
        "train_reward_accuracy": "rewards/accuracies",
        "train_reward_margin": "rewards/margins",
        "train_mean_token_accuracy": "mean_token_accuracy",
        "valid_preferred_loss": "",
        "valid_mean_token_accuracy": "",
    },
}
"""Of a result file by method, and what the trainer's log calls them; "" is not of the training.

Accuracy is the share of answer tokens that were the most likely ones, of a preference those of the better answer; a
reward's accuracy is the share of preferences whose better answer has gained more than the other, the margin how much.
"""
_METRICS = {
    "loss": "train_loss",
    "accuracy": "train_mean_token_accuracy",
    "reward_accuracy": "train_reward_accuracy",
    "reward_margin": "train_reward_margin",
}
"""What the progress says of a step, and what events and checkpoints call it."""


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
    found = {name: line[said] for said, name in _METRICS.items() if line.get(said) is not None}
    if line.get("loss") is not None:
        step = int(line["step"])
        data = {"step": step, "total_steps": line["total"], **found, "learning_rate": line.get("learning_rate")}
        said = f"Step {step}/{line['total']}: training loss={line['loss']:.2f}"
        lines.append(Told(key=f"step {of} {step}", message=said, type="metrics", data=data))
    if line.get("saved") is not None:
        step = int(line["saved"])
        lines.append(Told(key=f"saved {of} {step}", message=f"Checkpoint created at step {step}"))
        kept.append(Kept(step=step, metrics={"step": step, **found}))
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


def validation(record: Record, arm: str) -> dict[str, float]:
    """What an arm's model makes of the validation file: nothing if there is none, or it was not measured.

    Args:
        record: of the study.
        arm: whose model.
    """
    found = record.arm(arm).metrics
    loss, accuracy = (found[task].value if task in found else math.nan for task in HELD_OUT_TASKS)
    both = {"full_valid_loss": math.log(loss) if loss > 0 else math.nan, "full_valid_mean_token_accuracy": accuracy}
    return {name: value for name, value in both.items() if math.isfinite(value)}


def result_file(made: Mapping[str, Any], record: Record, arm: str, method: str) -> bytes:
    """The result file: one line per step that the trainer logged; what is not known is empty.

    What stands of the validation file is of the model which the job ends with, in the last line.

    Args:
        made: `made.json`.
        record: of the study.
        arm: that the job ends with.
        method: of the job, one of `COLUMNS`.
    """
    columns, steps = COLUMNS[method], int(made["steps"])
    lines = {int(line["step"]): {name: line.get(key) for name, key in columns.items()} for line in _logged(made)}
    valid = validation(record, arm)
    last = lines.setdefault(steps, {"step": steps})
    loss = "valid_loss" if "valid_loss" in columns else "valid_preferred_loss"
    last[loss] = valid.get("full_valid_loss")
    last["valid_mean_token_accuracy"] = valid.get("full_valid_mean_token_accuracy")
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    for _, line in sorted(lines.items()):
        table.writerow([_cell(line.get(name)) for name in columns])
    return text.getvalue().encode()


def _logged(made: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [line for line in made["log"] if "loss" in line]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5f}" if math.isfinite(value) else ""
    return "" if value is None else str(value)


def _words(share: Share) -> str:
    return f"{share.value:.1f} {share.unit}" if math.isfinite(share.value) else "not measured"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
