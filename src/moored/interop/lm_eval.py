# SPDX-License-Identifier: Apache-2.0
"""Utility through lm-eval: run as a program of its own, its results as a record."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from moored.data.schema import prompt_id
from moored.errors import ConfigError, DataError, StudyError, require
from moored.interop.records import Source, load_json, model_name
from moored.metrics.interval import Z_95, wilson
from moored.report.record import Measured, Record, Share

NEEDS = "this needs lm-eval: pip install 'moored[lm-eval]'"
PERCENT = 100.0


def run(
    model: str,
    tasks: Sequence[str],
    *,
    adapter: Path | None = None,
    out: Path,
    include: Path | None = None,
    limit: int = 0,
    batch: int = 8,
    chat: bool = False,
    more: Sequence[str] = (),
) -> Path:
    """Ask a model lm-eval's tasks, in a process of its own.

    Args:
        model: a folder or hub id that transformers loads.
        tasks: names of lm-eval's tasks or groups. Most download their data.
        adapter: folder of a PEFT adapter on the model.
        out: folder for lm-eval's own results and answers.
        include: folder with task files (YAML) of one's own. A task file can name code that is then run: include only
            files that you trust.
        limit: rows per task; 0 = all.
        batch: rows at a time.
        chat: put every prompt into the model's chat template.
        more: further words for lm-eval's command line.

    Returns:
        The results file.

    Raises:
        ConfigError: lm-eval is not installed, or a value is out of range.
        StudyError: lm-eval fails.
    """
    require(bool(tasks), "lm-eval", "tasks", "one name or more", list(tasks))
    require(limit >= 0, "lm-eval", "limit", ">= 0 (0 = all rows)", limit)
    require(batch >= 1, "lm-eval", "batch", ">= 1", batch)
    if find_spec("lm_eval") is None:
        raise ConfigError(NEEDS)
    before = set(out.rglob("results_*.json"))
    words = command(
        model, tasks, adapter=adapter, out=out, include=include, limit=limit, batch=batch, chat=chat, more=more
    )
    # Its progress is shown; its table is not, because it is read from the results.
    code = subprocess.run(words, stdout=subprocess.DEVNULL, check=False).returncode
    written = sorted(set(out.rglob("results_*.json")) - before)
    if code or not written:
        raise StudyError(f"lm-eval ended with exit code {code} and {len(written)} results; what it said stands above")
    return written[-1]


def command(
    model: str,
    tasks: Sequence[str],
    *,
    adapter: Path | None,
    out: Path,
    include: Path | None,
    limit: int,
    batch: int,
    chat: bool,
    more: Sequence[str],
) -> list[str]:
    """The command line, for `run`."""
    where = {"pretrained": model} | ({"peft": str(adapter)} if adapter else {})
    for path in where.values():
        require("," not in path, "lm-eval", "model", "a path without commas, which part lm-eval's arguments", path)
    optional = {
        "--include_path": str(include) if include else "",
        "--limit": str(limit) if limit else "",
    }
    return [
        *(sys.executable, "-m", "lm_eval", "run", "--model", "hf"),
        *("--model_args", ",".join(f"{name}={path}" for name, path in where.items())),
        *("--tasks", ",".join(tasks), "--batch_size", str(batch)),
        *("--output_path", str(out), "--log_samples"),
        *(word for name, value in optional.items() if value for word in (name, value)),
        *(["--apply_chat_template"] if chat else []),
        *more,
    ]


def samples_beside(results: Path) -> dict[str, list[dict[str, Any]]]:
    """The answers by task that lm-eval wrote with a results file; those that it did not write are missing.

    Args:
        results: `results_<date>.json`.

    Raises:
        DataError: a file of answers is broken.
    """
    date = results.stem.removeprefix("results_")
    found = {}
    for path in sorted(results.parent.glob(f"samples_*_{date}.jsonl")):
        task = path.stem.removeprefix("samples_").removesuffix(f"_{date}")
        try:
            found[task] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read ({error}); delete it to read the results alone") from error
    return found


def record(found: Mapping[str, Any], samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> Record:
    """The record of one run: a column for every metric of every task and group, named `task/metric` (`/filter`).

    Means of 0 to 1 are in %. The interval is what lm-eval's standard error gives (value +- 1.96 of it); where that is
    0 or missing, as it is when every answer is right, the share gets Wilson's, which keeps a width. Where the answers
    are at hand, their scores are kept too, so that two runs are compared answer by answer.

    Args:
        found: the results file.
        samples: the answers by task (`samples_beside`).

    Raises:
        DataError: it holds no numbers.
    """
    columns: list[Measured] = []
    metrics: dict[str, Share] = {}
    scores: dict[str, dict[str, float]] = {}
    for task, values in found["results"].items():
        for key, value in values.items():
            metric, _, chosen = key.partition(",")
            if not chosen or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            column = _column(found, task, metric, chosen)
            share = _is_share(found, metric, value)
            columns.append(column)
            metrics[column.name] = _estimate(value, values.get(f"{metric}_stderr,{chosen}"), _asked(found, task), share)
            own = _scores(samples.get(task, ()), metric, chosen, value)
            if own:
                scores[column.name] = own
    if not columns:
        raise DataError("the results of lm-eval hold no numbers; it was run with --predict_only, or of no task")
    config = found.get("config", {})
    return Source(
        tool="lm-eval",
        model=_model(config),
        created=datetime.fromtimestamp(found.get("date", 0), UTC).isoformat(timespec="seconds"),
        versions={
            name: str(found[f"{key}_version"])
            for name, key in (("lm-eval", "lm_eval"), ("transformers", "transformers"))
            if f"{key}_version" in found
        },
    ).record(columns, _warnings(config), metrics=metrics, scores=scores)


def read(path: Path) -> Record:
    """The record of a results file and the answers beside it.

    Args:
        path: `results_<date>.json`.

    Raises:
        DataError: see `record` and `samples_beside`; also no such file.
    """
    return record(load_json(path), samples_beside(path))


def _column(found: Mapping[str, Any], task: str, metric: str, chosen: str) -> Measured:
    name = "/".join([task, metric] if chosen == "none" else [task, metric, chosen])
    shots = found.get("n-shot", {}).get(task)
    # What else decides the prompts: numbers of other prompts are not compared.
    version = str(found.get("versions", {}).get(task, ""))
    asked = [*([] if shots is None else [f"{shots}-shot"]), *(["chat template"] if found.get("chat_template") else [])]
    higher = found.get("higher_is_better", {}).get(task, {}).get(metric)
    return Measured(
        name=name,
        title=name,
        role="utility",
        better="lower" if higher is False else "higher",
        judge=f"lm-eval, {metric}",
        version=", ".join([version, *asked]),
        data=_data(found["configs"].get(task, {})),
    )


def _data(config: Mapping[str, Any]) -> str:
    """Hub id and part, or the names of local files."""
    local = (config.get("dataset_kwargs") or {}).get("data_files")
    if local:
        files = local.values() if isinstance(local, Mapping) else [local]
        flat = [file for each in files for file in (each if isinstance(each, list) else [each])]
        return ", ".join(Path(file).name for file in flat)
    parts = (config.get("dataset_path"), config.get("dataset_name"))
    return ":".join(model_name(str(part)) for part in parts if part)


def _is_share(found: Mapping[str, Any], metric: str, value: float) -> bool:
    """Whether a number is a mean of 0 to 1, as the tasks' settings say; a group's is if its tasks' are."""
    ways = {
        listed.get("aggregation")
        for config in found["configs"].values()
        for listed in config.get("metric_list") or []
        if listed.get("metric") == metric
    }
    return ways == {"mean"} and 0 <= value <= 1


def _asked(found: Mapping[str, Any], task: str) -> int:
    """Rows behind a number; of a group, those of all its tasks."""
    own = found.get("n-samples", {}).get(task)
    if own:
        return int(own["effective"])
    return sum(_asked(found, each) for each in found.get("group_subtasks", {}).get(task, []))


def _estimate(value: float, error: Any, n: int, share: bool) -> Share:
    unit, scale = ("%", PERCENT) if share else ("", 1.0)
    half = Z_95 * error if isinstance(error, int | float) and math.isfinite(error) else 0.0
    low, high = (value - half, value + half) if half else (math.nan, math.nan)
    if share:
        low, high = (max(0.0, low), min(1.0, high)) if half else wilson(value * n, n) if n else (low, high)
    return Share(value=scale * value, low=scale * low, high=scale * high, n=n, unit=unit)


def _scores(samples: Sequence[Mapping[str, Any]], metric: str, chosen: str, value: float) -> dict[str, float]:
    """What each answer scored; none where the number is no mean of them."""
    own = [each for each in samples if each.get("filter", "none") == chosen]
    scores = {prompt_id(f"{each['doc_id']} {each['prompt_hash']}"): each.get(metric) for each in own}
    numbers = {key: float(score) for key, score in scores.items() if isinstance(score, int | float)}
    fits = len(numbers) == len(own) and numbers and math.isclose(sum(numbers.values()) / len(numbers), value)
    return numbers if fits else {}


def _model(config: Mapping[str, Any]) -> str:
    """The adapter's name, or the model's."""
    given = config.get("model_args") or {}
    if isinstance(given, str):
        given = dict(part.split("=", 1) for part in given.split(",") if "=" in part)
    where = given.get("peft") or given.get("pretrained") or given.get("model") or config.get("model") or "model"
    return model_name(str(where))


def _warnings(config: Mapping[str, Any]) -> list[str]:
    limit = config.get("limit")
    return [f"lm-eval asked no more than the first {limit:g} rows (or that share) of each task"] if limit else []
