# SPDX-License-Identifier: Apache-2.0
"""A model card for one arm of a study: metadata that hubs read, then what was measured and what was not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from moored.report.headline import alarms, same_conditions
from moored.report.html import caveats, facts
from moored.report.record import Arm, Measured, Record
from moored.report.ruling import AFTER, ruling
from moored.report.table import estimate, markdown_text, number


def card(record: Record | Mapping[str, Any], arm: str, *, notices: Sequence[str] = ()) -> str:
    """The model card of one arm as markdown with a YAML head.

    Args:
        record: the study's record.
        arm: name of the arm.
        notices: what a reader must know first; shown at the top, as plain text.

    Raises:
        DataError: not a results record.
        ConfigError: no such arm.
    """
    record = Record.read(record)
    found = record.arm(arm)
    title = record.label(found)
    made_up = ["> **Made-up numbers: a demonstration.**", ""] if record.demonstration else []
    warnings = [f"> **Warning.** {markdown_text(warning)}" for warning in alarms(record)]
    parts = [
        f"---\n{_metadata(record, found).to_yaml()}\n---",
        f"# {markdown_text(title)}",
        "\n>\n".join(f"> {markdown_text(notice)}" for notice in notices),
        "\n".join([*made_up, *warnings]),
        _verdict(record, found),
        markdown_text(" · ".join(facts(record))),
        _chain(record, found),
        "## Measured",
        _measured(record, found),
        _proof(found),
        "## What this does not promise",
        "\n".join(f"- {markdown_text(caveat)}" for caveat in caveats(record)),
        "## Run it again",
        _again(record),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _verdict(record: Record, arm: Arm) -> str:
    """What an audit says of its model, and by which rule; "" for other arms and records."""
    found = ruling(record) if arm is record.arms[-1] else None
    return f"**{markdown_text(found.sentence)}**\n\n{markdown_text(found.rule)}" if found else ""


def _chain(record: Record, arm: Arm) -> str:
    """How the model was made; "" of an audit, which cannot know."""
    if record.limit is not None:
        return ""
    chain = "\n".join(f"{i}. {markdown_text(stage)}" for i, stage in enumerate(arm.chain, 1))
    return f"## How it was made\n\n{chain or 'Not recorded.'}"


def _metadata(record: Record, arm: Arm) -> ModelCardData:
    """What a hub reads: base model, tags, and one result per measured task."""
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=task.data or task.name,
            dataset_name=task.title,
            metric_type=task.name,
            metric_name=f"{task.title} [{share.unit}], 95 % interval and n: {estimate(share, n=True)}",
            metric_value=round(share.value, 2) if share.unit == "%" else float(f"{share.value:.3g}"),
        )
        for task in record.tasks
        if (share := arm.metrics.get(task.name)) is not None and math.isfinite(share.value)
    ]
    return ModelCardData(
        base_model=record.model or None,
        library_name="peft" if arm.adapter else "transformers",
        tags=["moored", "safety", *sorted(arm.fired), *sorted({repair.method for repair in arm.repairs})],
        model_name=f"{record.name}-{arm.name}" if record.limit is None else arm.title.removesuffix(AFTER),
        eval_results=results or None,
    )


def _measured(record: Record, arm: Arm) -> str:
    """This arm beside the references and the undefended run."""
    others = [
        a for a in record.arms if a is not arm and (a.kind == "start" or a.undefended and same_conditions(arm, a))
    ]
    columns = [*others, arm]
    head = ["Task", *(record.label(column) for column in columns)]
    rows = [[_task(task), *(estimate(a.metrics.get(task.name), n=True) for a in columns)] for task in record.tasks]
    if any(math.isfinite(column.seconds) for column in columns):
        rows.append(["Seconds", *(number(column.seconds, 0) for column in columns)])
    lines = [head, ["---", *["--:"] * len(columns)], *rows]
    table = "\n".join("| " + " | ".join(markdown_text(cell) for cell in line) + " |" for line in lines)
    return table + "\n\nValue [95 % interval] with the number n of judged answers."


def _task(task: Measured) -> str:
    return f"{task.title} ({task.better} is better)"


def _proof(arm: Arm) -> str:
    """What shows that the defences acted."""
    lines = [
        f"- {name} acted {fired.count} times, mean {number(fired.mean, 3)} {fired.unit}".rstrip()
        for name, fired in arm.fired.items()
    ]
    lines += [f"- {one.method} changed {one.changed} of {one.total} weight matrices" for one in arm.repairs]
    return "\n".join(["Proof that the defences acted:", "", *(_line(line) for line in lines)]) if lines else ""


def _line(line: str) -> str:
    return "- " + markdown_text(line.removeprefix("- "))


def _again(record: Record) -> str:
    """Command, commit and versions."""
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    lines = [f"Commit: {record.commit}" if record.commit else "", f"Versions: {versions}" if versions else ""]
    command = "\n".join(f"    {line}" for line in record.command.splitlines())
    said = "\n".join(f"- {markdown_text(line)}" for line in lines if line)
    return "\n\n".join(part for part in (command, said) if part) or "Not recorded."
