# SPDX-License-Identifier: Apache-2.0
"""Tasks on a model: ask or read it, judge, estimate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import nn
from transformers import PreTrainedTokenizerBase

from moored.data.schema import Row
from moored.errors import JudgeError
from moored.judges.base import Exchange
from moored.metrics.base import Estimate
from moored.metrics.interval import disagreement
from moored.progress import Progress
from moored.serving import Serving
from moored.tasks.answering import AnswerTask
from moored.tasks.base import Outcome, Task
from moored.tasks.subject import Loaded, Subject


def evaluate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    progress: Progress | None = None,
    *,
    serving: Serving | None = None,
    aligned: Loaded | None = None,
) -> list[Outcome]:
    """What each task measures on a model, in the order of `tasks`; one generation call per task that asks.

    All rows are loaded before the first answer is generated, so that bad data costs no time.

    Args:
        model: a causal language model, plain or with a PEFT adapter; left as it was.
        tokenizer: its tokenizer; left as it was.
        tasks: each is measured by itself.
        progress: called as `progress(done, total, what)` with rows of all tasks together.
        serving: what the model must be served with: `moored.hf.loaders.load_serving` of its folder, or a protected
            trainer's `moored_serving`.
        aligned: the model that tuning started from, for tasks that compare with it (`Task.needs`).

    Raises:
        DataError: a task's data is missing, empty or malformed.
        JudgeError: none of a task's answers could be judged.
        NeedsError: a task compares with the aligned model, and there is none.
    """
    loaded = Loaded(model=model, tokenizer=tokenizer, serving=serving)
    return measured(Subject.of(loaded, None if aligned is None else lambda: aligned), tasks, progress)


def measured(
    subject: Subject, tasks: Sequence[Task], progress: Progress | None = None, *, lenient: bool = False
) -> list[Outcome]:
    """`evaluate` on anything that can be measured.

    Args:
        subject: a model in memory, or behind a URL.
        tasks: see `evaluate`.
        progress: see `evaluate`.
        lenient: what cannot be judged at all becomes an outcome without a number, see `unjudged`.

    Raises:
        MooredError: see `evaluate`.
    """
    rows = [task.rows() for task in tasks]
    total, done = sum(map(len, rows)), 0
    outcomes = []
    for task, chosen in zip(tasks, rows, strict=True):
        once = subject.remembering()
        try:
            outcomes.append(task.measure(chosen, once, _shifted(progress, done, total, task.name)))
        except JudgeError:
            if not lenient:
                raise
            outcomes.append(unjudged(task, chosen, once))
        done += len(chosen)
    return outcomes


def unjudged(task: Task, rows: Sequence[Row], subject: Subject) -> Outcome:
    """The outcome of a task none of whose answers can be judged (gibberish): no number, but the answers are kept.

    A model that gives no numbers at all (NaN) cannot be read either, and nothing of it is kept.

    Args:
        task: that raised `JudgeError`.
        rows: its rows.
        subject: gives the answers once more; see `Subject.remembering`.
    """
    nothing = Estimate(value=math.nan, low=math.nan, high=math.nan, n=0, unjudged=len({row.question for row in rows}))
    if not isinstance(task, AnswerTask):
        return Outcome(task=task.name, version=task.version, estimate=nothing, exchanges=(), verdicts=())
    answers = subject.ask([row.prompt for row in rows], task.decoding, None)
    exchanges = tuple(
        Exchange(prompt=row.question, answer=answer, reference=row.answer)
        for row, answer in zip(rows, answers, strict=True)
    )
    verdicts = tuple(task.judge.judge(exchanges))
    nothing = replace(nothing, disagreement=disagreement(verdicts))
    return Outcome(task=task.name, version=task.version, estimate=nothing, exchanges=exchanges, verdicts=verdicts)


def _shifted(progress: Progress | None, before: int, total: int, what: str) -> Progress | None:
    """The progress of one task as progress of all."""
    if progress is None:
        return None
    return lambda done, _total, _what: progress(before + done, total, what)
