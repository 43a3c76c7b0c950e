# SPDX-License-Identifier: Apache-2.0
"""Tasks on a model: ask or read it, judge, estimate."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedTokenizerBase

from moored.progress import Progress
from moored.serving import Serving
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


def measured(subject: Subject, tasks: Sequence[Task], progress: Progress | None = None) -> list[Outcome]:
    """`evaluate` on anything that can be measured.

    Args:
        subject: a model in memory, or behind a URL.
        tasks: see `evaluate`.
        progress: see `evaluate`.

    Raises:
        MooredError: see `evaluate`.
    """
    rows = [task.rows() for task in tasks]
    total, done = sum(map(len, rows)), 0
    outcomes = []
    for task, chosen in zip(tasks, rows, strict=True):
        outcomes.append(task.measure(chosen, subject, _shifted(progress, done, total, task.name)))
        done += len(chosen)
    return outcomes


def _shifted(progress: Progress | None, before: int, total: int, what: str) -> Progress | None:
    """The progress of one task as progress of all."""
    if progress is None:
        return None
    return lambda done, _total, _what: progress(before + done, total, what)
