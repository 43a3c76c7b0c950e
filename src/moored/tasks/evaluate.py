# SPDX-License-Identifier: Apache-2.0
"""Tasks on a model: generate, judge, estimate."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedTokenizerBase

from moored.hf.generate import generate
from moored.progress import Progress
from moored.serving import Serving
from moored.tasks.base import Outcome, Task


def evaluate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    progress: Progress | None = None,
    *,
    serving: Serving | None = None,
) -> list[Outcome]:
    """What each task measures on a model, in the order of `tasks`; one generation call per task.

    All rows are loaded before the first answer is generated, so that bad data costs no time.

    Args:
        model: a causal language model, plain or with a PEFT adapter; left as it was.
        tokenizer: its tokenizer; left as it was.
        tasks: each is generated and judged by itself.
        progress: called as `progress(done, total, what)` with rows of all tasks together.
        serving: what the model must be served with: `moored.hf.loaders.load_serving` of its folder, or a protected
            trainer's `moored_serving`.

    Raises:
        DataError: a task's data is missing, empty or malformed.
        JudgeError: none of a task's answers could be judged.
    """
    rows = [task.rows() for task in tasks]
    total, done = sum(map(len, rows)), 0
    outcomes = []
    for task, chosen in zip(tasks, rows, strict=True):
        answers = generate(
            model,
            tokenizer,
            [row.prompt for row in chosen],
            max_new_tokens=task.max_new_tokens,
            sampling=task.sampling,
            serving=serving,
            progress=_shifted(progress, done, total, task.name),
        )
        outcomes.append(task.score(chosen, answers))
        done += len(chosen)
    return outcomes


def _shifted(progress: Progress | None, before: int, total: int, what: str) -> Progress | None:
    """The progress of one task as progress of all."""
    if progress is None:
        return None
    return lambda done, _total, _what: progress(before + done, total, what)
