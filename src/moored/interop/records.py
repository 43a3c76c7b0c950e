# SPDX-License-Identifier: Apache-2.0
"""Results of other tools as records, so that `moored compare`, tables and reports take them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moored.errors import DataError
from moored.report.record import Arm, Measured, Record


def read(path: Path, **foreign: Any) -> Record:
    """The record of a results file of inspect-ai or lm-eval.

    Args:
        path: a log of inspect-ai (.eval or .json), or `results_*.json` of lm-eval, beside which the answers
            (`samples_*.jsonl`) are looked for.
        foreign: `role` and `better` of what inspect-ai measured with tasks that are not ours.

    Raises:
        DataError: no such file, none of the two, or an evaluation that did not end.
    """
    from moored.interop import inspect_log, lm_eval

    if path.suffix == ".eval":
        return inspect_log.record(inspect_log.load(path), **foreign)
    found = load_json(path)
    if "eval" in found and "status" in found:
        return inspect_log.record(found, **foreign)
    if "results" in found and "configs" in found:
        return lm_eval.record(found, lm_eval.samples_beside(path))
    raise DataError(f"{path} is neither a log of inspect-ai (.eval, .json) nor results of lm-eval (results_*.json)")


def load_json(path: Path) -> dict[str, Any]:
    """An object from a file.

    Args:
        path: UTF-8 text; NaN may stand in it.

    Raises:
        DataError: the file cannot be read, or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} must hold an object")
    return found


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a results file says beside the numbers.

    Args:
        tool: "inspect-ai" or "lm-eval".
        model: its name there, no machine path (`model_name`).
        created: UTC, ISO 8601.
        versions: of the packages that the numbers depend on.
    """

    tool: str
    model: str
    created: str
    versions: dict[str, str]

    def record(self, columns: Sequence[Measured], warnings: Sequence[str] = (), **measured: Any) -> Record:
        """A record with one arm, named after the model.

        Args:
            columns: what was measured.
            warnings: shown first.
            measured: fields of the arm: `metrics`, `scores`, `examples`.
        """
        return Record(
            name=self.tool,
            title=f"{self.model}, measured with {self.tool}",
            model=self.model,
            created=self.created,
            versions=self.versions,
            tasks=list(columns),
            arms=[Arm(name=self.model, title=self.model, kind="start", **measured)],
            warnings=list(warnings),
        )


def model_name(where: str) -> str:
    """A model as a record may name it: a folder by its name alone, a hub id or a provider's name as it is.

    Args:
        where: a folder, a hub id, or either behind a provider ("hf/", "openai-api/local/").
    """
    provider, slash, rest = where.partition("/")
    folder = rest if slash and rest.startswith(("/", ".", "~")) else where
    if folder.startswith(("/", ".", "~")):
        return Path(folder).name or provider
    return where


def merged(records: Sequence[Record]) -> Record:
    """One record of several: tasks side by side, one arm per model.

    Args:
        records: at least one.

    Raises:
        DataError: one model was measured twice on a task, or two records mean different things by one task.
    """
    first, *others = records
    if not others:
        return first
    columns: dict[str, Measured] = {}
    arms: dict[str, Arm] = {}
    for record in records:
        for task in record.tasks:
            if columns.setdefault(task.name, task) != task:
                raise DataError(f"task {task.name} has another judge, version or data in {record.title!r}")
        for arm in record.arms:
            arms[arm.name] = _joined(arms[arm.name], arm) if arm.name in arms else arm
    return first.model_copy(
        update={
            "title": f"measured with {', '.join(dict.fromkeys(record.name for record in records))}",
            "model": ", ".join(dict.fromkeys(record.model for record in records)),
            "versions": {name: version for record in records for name, version in record.versions.items()},
            "tasks": list(columns.values()),
            "arms": list(arms.values()),
            "warnings": list(dict.fromkeys(warning for record in records for warning in record.warnings)),
        }
    )


def _joined(one: Arm, other: Arm) -> Arm:
    twice = sorted(one.metrics.keys() & other.metrics.keys())
    if twice:
        raise DataError(
            f"{one.name} was measured twice on {', '.join(twice)}; read one of the two, or name them apart with --name"
        )
    return one.model_copy(
        update={
            "metrics": {**one.metrics, **other.metrics},
            "scores": {**one.scores, **other.scores},
            "examples": [*one.examples, *other.examples],
        }
    )


def named(record: Record, name: str) -> Record:
    """The record with its one arm called something else.

    Args:
        record: of one results file.
        name: of the arm.
    """
    (arm,) = record.arms
    return record.model_copy(update={"model": name, "arms": [arm.model_copy(update={"name": name, "title": name})]})
