# SPDX-License-Identifier: Apache-2.0
"""Logs of inspect-ai as records: of our tasks with our metric and its interval, of others as they were scored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from moored.catalogue import make
from moored.data.schema import prompt_id
from moored.errors import ConfigError, DataError, JudgeError
from moored.interop.records import Source, model_name
from moored.judges.base import Verdict
from moored.metrics.base import Metric
from moored.metrics.interval import mean_of, share_of
from moored.report.record import Example, Measured, Record, Role, Share
from moored.study.results import EXAMPLES

OURS = "moored"
"""Where a log's metadata say which task of ours it was."""

_MARKS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
"""inspect-ai's letters: correct, partial, incorrect, no answer."""

_OVERRIDDEN = ("temperature", "top_p", "max_tokens", "system_message")
"""Settings of generation that decide the answers, and are the task's own business."""

Sample = Mapping[str, Any]


def load(path: Path) -> dict[str, Any]:
    """A log in inspect-ai's own format.

    Args:
        path: an .eval file.

    Raises:
        ConfigError: inspect-ai is not installed.
        DataError: the file cannot be read.
    """
    try:
        from inspect_ai.log import read_eval_log
    except ImportError as error:
        raise ConfigError(
            f"reading {path.name} needs inspect-ai: pip install 'moored[inspect]', or write logs with --log-format json"
        ) from error
    try:
        return read_eval_log(str(path)).model_dump(mode="json")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a log of inspect-ai: {error}") from error


def record(log: Mapping[str, Any], *, role: Role = "utility", better: Literal["lower", "higher"] = "higher") -> Record:
    """The record of one evaluation.

    Of a task of ours (`moored/...`), the verdicts go into our metric, so that the estimate is that of
    `moored.tasks.evaluate` on the same answers. Of any other, every scorer whose scores are single numbers (or C, P,
    I, N) is a column: a share with Wilson's interval where all are in 0-1, else a mean with the bootstrap's.

    Args:
        log: as JSON has it.
        role: what another's task measures.
        better: which direction is good in another's task.

    Raises:
        DataError: the evaluation did not end, kept no samples, or has no scores that can be read.
    """
    meta = log["eval"]
    if log["status"] != "success":
        raise DataError(
            f"the evaluation of {meta['task']} ended as {log['status']!r}; finish it with `inspect eval-retry` first"
        )
    samples = _ordered(log)
    source = Source(
        tool="inspect-ai",
        model=model_name((meta.get("model_args") or {}).get("model_path") or meta["model"]),
        created=meta["created"],
        versions={name.replace("_", "-"): version for name, version in meta.get("packages", {}).items()},
    )
    own = (meta.get("metadata") or {}).get(OURS)
    if own is None:
        return _foreign(source, meta, samples, role, better)
    return _ours(source, meta, own, samples)


def _ordered(log: Mapping[str, Any]) -> list[Sample]:
    """The samples in the order of the data, whichever ended first."""
    task, samples = log["eval"]["task"], log.get("samples")
    if not samples:
        raise DataError(f"the log of {task} holds no samples; evaluate without --no-log-samples")
    order = {key: place for place, key in enumerate(log["eval"]["dataset"].get("sample_ids") or [])}
    return sorted(samples, key=lambda sample: (order.get(sample["id"], len(order)), sample["epoch"]))


def _ours(source: Source, meta: Mapping[str, Any], own: Mapping[str, Any], samples: Sequence[Sample]) -> Record:
    column, metric = Measured(**own["task"]), make("metrics", own["metric"])
    if any(sample["epoch"] != 1 for sample in samples):
        raise DataError(f"{column.name} was asked more than once per prompt; evaluate with --epochs 1")
    scored = [_verdict(sample) for sample in samples]
    verdicts, prompts = [verdict for verdict, _ in scored], [prompt for _, prompt in scored]
    return source.record(
        [column],
        _warnings(meta, column.name),
        metrics={column.name: _estimate(metric, verdicts)},
        scores={
            column.name: {
                prompt_id(prompt): metric.credit(verdict.value)
                for verdict, prompt in zip(verdicts, prompts, strict=True)
            }
        },
        examples=[
            _example(sample, column.name, verdict, prompt, metric)
            for sample, verdict, prompt in zip(samples, verdicts, prompts, strict=True)
        ][:EXAMPLES],
    )


def _verdict(sample: Sample) -> tuple[Verdict, str]:
    """Our judge's verdict on a sample, and the prompt that it judged; unjudged where inspect-ai ended without one."""
    scores = list((sample.get("scores") or {}).values())
    if not scores:
        return Verdict(value=math.nan, reason="the sample ended with an error", judge=""), _question(sample)
    said = scores[0].get("metadata") or {}
    verdict = Verdict(
        value=_number(scores[0]["value"]), reason=scores[0].get("explanation") or "", judge=said.get("judge", "")
    )
    return verdict, said.get("prompt", _question(sample))


def _estimate(metric: Metric, verdicts: Sequence[Verdict]) -> Share:
    try:
        return Share(**asdict(metric.estimate(verdicts)))
    except JudgeError as error:
        raise DataError(f"the log has nothing to estimate from: {error}") from error


def _example(sample: Sample, task: str, verdict: Verdict, prompt: str, metric: Metric) -> Example:
    refused = verdict.value >= 0.5 if metric.needs == "refused" and verdict.judged else None
    given = [score.get("answer") or "" for score in (sample.get("scores") or {}).values()]
    return Example(prompt=prompt, answer=given[0] if given else "", refused=refused, task=task)


def _warnings(meta: Mapping[str, Any], task: str) -> list[str]:
    """What was asked in another way than the task asks."""
    given = meta.get("model_generate_config") or {}
    changed = [f"{name} {given[name]!r}" for name in _OVERRIDDEN if given.get(name) is not None]
    return [f"{task} was answered with {', '.join(changed)}, which is not the task's own"] if changed else []


def _foreign(
    source: Source,
    meta: Mapping[str, Any],
    samples: Sequence[Sample],
    role: Role,
    better: Literal["lower", "higher"],
) -> Record:
    found = _columns(samples)
    if not found:
        raise DataError(f"no scorer of {meta['task']} gave single numbers; there is nothing to read")
    columns, metrics, scores = [], {}, {}
    for scorer, values in found.items():
        name = meta["task"] if len(found) == 1 else f"{meta['task']}/{scorer}"
        verdicts = [Verdict(value=value, reason="", judge=scorer) for value in values.values()]
        shares = all(0 <= verdict.value <= 1 for verdict in verdicts if verdict.judged)
        estimate = share_of(verdicts, float) if shares else mean_of(verdicts, float, "of its own")
        columns.append(
            Measured(
                name=name,
                title=name,
                role=role,
                better=better,
                judge=f"inspect-ai, {scorer}",
                version=str(meta.get("task_version", "")),
                data=model_name(meta["dataset"].get("name") or ""),
            )
        )
        metrics[name], scores[name] = Share(**asdict(estimate)), values
    return source.record(columns, metrics=metrics, scores=scores)


def _columns(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """By scorer, the score of every sample (mean over epochs); scorers that give anything but numbers are left out."""
    given: dict[str, dict[str, list[float]]] = {}
    for sample in samples:
        # A number and the question: two samples may ask the same.
        key = prompt_id(f"{sample['id']} {_question(sample)}")
        for scorer, score in (sample.get("scores") or {}).items():
            given.setdefault(scorer, {}).setdefault(key, []).append(_number(score["value"], math.inf))
    return {
        scorer: {key: _mean(several) for key, several in values.items()}
        for scorer, values in given.items()
        if not any(math.isinf(value) for several in values.values() for value in several)
        and any(not math.isnan(value) for several in values.values() for value in several)
    }


def _mean(values: Sequence[float]) -> float:
    """Of those that were scored."""
    scored = [value for value in values if not math.isnan(value)]
    return sum(scored) / len(scored) if scored else math.nan


def _number(value: Any, other: float = math.nan) -> float:
    """A score as a number; `other` for what is none."""
    if isinstance(value, bool | int | float):
        return float(value)
    if value is None:
        return math.nan
    return _MARKS.get(value, other) if isinstance(value, str) else other


def _question(sample: Sample) -> str:
    """The last user turn of what was asked."""
    asked = sample["input"]
    if isinstance(asked, str):
        return asked
    said = next((turn["content"] for turn in reversed(asked) if turn["role"] == "user"), "")
    return said if isinstance(said, str) else "\n".join(part.get("text", "") for part in said)
