# SPDX-License-Identifier: Apache-2.0
"""The stage that measures: one task on the model at the end of other stages, or on the model as shipped."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from moored.data.schema import Prompts, Row, fingerprint
from moored.errors import JudgeError
from moored.hf import generate as generation
from moored.hf.device import DType, precision
from moored.judges.base import Verdict
from moored.progress import Found, Progress
from moored.sampling import Decoding
from moored.study.stages import REPORT, AlignStage, Session, Source, Stage, Subject, Where, by_content, write_json
from moored.tasks.base import Depth, Outcome, Task
from moored.tasks.evaluate import unjudged
from moored.tasks.subject import Subject as Measurable
from moored.transcript import Transcript

ANSWERS = "answers.jsonl"
USUAL: DType = "bfloat16"
"""The precision in which models are served, and so judged, unless this machine cannot (`precision`)."""


@dataclass(frozen=True, kw_only=True)
class EvaluateStage(Stage):
    """One task on one model.

    `start` is given if, and only if, the task compares with the aligned model; `judging` are the model folders that its
    judge loads.
    """

    kind: ClassVar[str] = "evaluate"
    subject: Subject
    task: Task
    rows: tuple[Row, ...] = field(repr=False)
    start: AlignStage | Source | None = None
    judging: tuple[Source, ...] = ()

    @property
    def parents(self) -> tuple[Stage, ...]:
        """The stage that made the model, if one did, and the one that made what it is compared with."""
        return tuple(stage for stage in (self.subject, self.start) if isinstance(stage, Stage))

    @property
    def words(self) -> str:
        """For example `judge harmful_requests`."""
        return self.task.words(len(self.rows))

    def parameters(self) -> dict[str, Any]:
        """See `Stage.parameters`. The rows stand in by content; where they came from does not matter."""
        task = self.task
        own = {} if isinstance(self.subject, Stage) else {"model": self.subject.identity}
        own |= {} if precision() == USUAL else {"precision": precision()}
        if isinstance(self.start, Source):
            own["aligned"] = self.start.identity
        return own | {
            "task": f"{task.name} {task.version}",
            "settings": by_content(task.settings(), self.judging),
            "rows": fingerprint(self.rows),
            **task.measured_by(),
        }

    def run(self, where: Where, work: Path, session: Session, progress: Progress) -> None:
        """Measure; a model whose answers cannot be judged at all is recorded as not measured.

        Answers are kept as they come, so a stopped stage asks only what is missing.
        """
        loaded = session.model(self.subject, where)
        kept = Transcript(path=work / ANSWERS, of=self.task.name)  # the folder is this stage's alone

        def ask(prompts: Prompts, how: Decoding, progress: Progress | None) -> list[str]:
            def missing(again: int, asked: Prompts, found: Found) -> list[str]:
                return generation.generate(
                    loaded.model,
                    loaded.tokenizer,
                    asked,
                    max_new_tokens=how.max_new_tokens,
                    sampling=how.sampling,
                    again=again,
                    serving=loaded.serving,
                    progress=progress,
                    found=found,
                )

            answers: list[str] = []
            # In rounds, so that what a stop cut off is drawn as it would have been.
            for again in range(how.samples):
                round_end = len(prompts) // how.samples * (again + 1)
                answers = kept.answers(prompts[:round_end], partial(missing, again))
            return answers

        start = self.start
        aligned = None if start is None else lambda: session.start(start, where)
        subject = Measurable(ask=ask, loaded=loaded, aligned=aligned)
        try:
            report = outcome_record(self.task.measure(self.rows, subject, progress))
        except JudgeError:
            report = outcome_record(unjudged(self.task, self.rows, subject))
        write_json(work / REPORT, report)
        kept.path.unlink(missing_ok=True)


def outcome_record(outcome: Outcome) -> dict[str, Any]:
    """An outcome as plain JSON; NaN becomes null."""
    return {
        "task": outcome.task,
        "version": outcome.version,
        "estimate": _finite(outcome.estimate.record()),
        "exchanges": [asdict(exchange) for exchange in outcome.exchanges],
        "verdicts": [_plain(verdict) for verdict in outcome.verdicts],
        "depths": [_plain(depth) | {"distance": _finite(depth.distance.record())} for depth in outcome.depths],
    }


def _plain(value: Verdict | Depth) -> dict[str, Any]:
    return {name: _finite(each) for name, each in asdict(value).items()}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
