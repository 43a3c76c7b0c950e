# SPDX-License-Identifier: Apache-2.0
"""Our tasks under inspect-ai: `inspect eval moored/harmful_requests --model ...`.

inspect-ai finds this module through the entry point `inspect_ai` and sees every task of the catalogue that asks as
`moored/<name>`; its parameters are given with `-T`, in the words of a recipe (`-T n=8 -T by=keywords`). The judge and
the metric are ours, so the numbers are those of `moored.tasks.evaluate` on the same answers, to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import inspect_ai
from anyio import CapacityLimiter, to_thread
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessage, ChatMessageAssistant, ChatMessageSystem, ChatMessageUser, GenerateConfig
from inspect_ai.scorer import Metric as InspectMetric
from inspect_ai.scorer import SampleScore, Score, Scorer, Target, metric, scorer
from inspect_ai.solver import TaskState, generate

from moored.catalogue import catalogue
from moored.data.schema import Row, prompt_id
from moored.errors import JudgeError, NotYetSupported
from moored.interop.inspect_log import OURS
from moored.judges.asking import Asking
from moored.judges.base import Verdict
from moored.metrics.base import Metric
from moored.study.methods import build
from moored.study.results import column
from moored.tasks.answering import AnswerTask

_TURNS: dict[str, Callable[..., ChatMessage]] = {
    "system": ChatMessageSystem,
    "user": ChatMessageUser,
    "assistant": ChatMessageAssistant,
}


def as_inspect(task: AnswerTask) -> inspect_ai.Task:
    """A task of ours as one of inspect-ai: the same prompts, asked in the same way, the same judge and metric.

    Every sample is one row, named by its prompt's id. What is asked is the row's chat; the model and its chat template
    are inspect-ai's business, and so is a prefix that a model must be served with: ask it behind a URL that adds it.
    An answer that cannot be judged is unscored (NaN), with the reason, and counts as neither right nor wrong.

    Args:
        task: any of `moored list tasks` that asks the model; what reads the model itself cannot be had behind an API.

    Raises:
        NotYetSupported: it draws several answers per prompt.
        DataError: its data is missing, empty or malformed.
    """
    if task.samples > 1:
        raise NotYetSupported(
            f"{task.name} draws {task.samples} answers per prompt, which inspect-ai would average in its own way; set "
            "`samples` to 1 here, or run the task with moored"
        )
    rows = {prompt_id(row.question): row for row in task.rows()}
    samples = [Sample(input=_chat(row), target=row.answer, id=key) for key, row in rows.items()]
    return inspect_ai.Task(
        dataset=MemoryDataset(samples, name=column(task).data),
        solver=generate(),
        scorer=_scorer(task, rows),
        config=_config(task),
        name=task.name,
        version=task.version,
        metadata={OURS: {"task": column(task).model_dump(mode="json"), "metric": task.metric.name}},
    )


def _config(task: AnswerTask) -> GenerateConfig:
    how = task.decoding
    if how.sampling is None:
        return GenerateConfig(temperature=0.0, max_tokens=how.max_new_tokens)
    drawn = how.sampling
    return GenerateConfig(
        temperature=float(drawn.temperature),
        top_p=float(drawn.top_p),
        seed=drawn.seed,
        max_tokens=how.max_new_tokens,
    )


def _chat(row: Row) -> list[ChatMessage]:
    return [_TURNS[turn["role"]](content=turn["content"]) for turn in row.prompt]


def _scorer(task: AnswerTask, rows: dict[str, Row]) -> Scorer:
    judge = task.judge
    # A model on this machine judges one answer at a time; one behind a URL takes as many as it is told to.
    limit = CapacityLimiter(judge.parallel if isinstance(judge, Asking) else 1)

    def judged(key: str, answer: str) -> Score:
        (exchange,), (verdict,) = task.judged([rows[key]], [answer])
        return Score(
            value=verdict.value,
            answer=exchange.answer,
            explanation=verdict.reason,
            reason=None if verdict.judged else "grader_failed" if answer else "no_response",
            metadata={"judge": verdict.judge, "prompt": exchange.prompt},
        )

    async def score(state: TaskState, target: Target) -> Score:
        return await to_thread.run_sync(judged, str(state.sample_id), state.output.completion.strip(), limiter=limit)

    return scorer(metrics=[_metric(task.metric)], name=judge.name)(lambda: score)()


def _metric(ours: Metric) -> InspectMetric:
    """The estimate, with its interval, as inspect-ai prints it."""

    def estimate(scores: list[SampleScore]) -> dict[str, float | int]:
        verdicts = [Verdict(value=each.score.as_float(), reason="", judge="") for each in scores]
        try:
            found = asdict(ours.estimate(verdicts))
        except JudgeError:  # nothing was judged, or epochs were averaged to what is no verdict
            return {ours.name: math.nan, "n": len(scores)}
        return {ours.name: found["value"], "low": found["low"], "high": found["high"], "n": found["n"]}

    return metric(name=ours.name)(lambda: estimate)()


def _register(name: str) -> Callable[..., inspect_ai.Task]:
    """The task called `moored/<name>` for inspect-ai."""

    def made(**parameters: Any) -> inspect_ai.Task:
        return as_inspect(build("tasks", name, parameters))

    return inspect_ai.task(name=name)(made)


TASKS = {name: _register(name) for name, cls in catalogue("tasks").items() if issubclass(cls, AnswerTask)}
"""Every task of the catalogue that asks, as inspect-ai calls it."""
