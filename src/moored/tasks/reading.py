# SPDX-License-Identifier: Apache-2.0
"""Tasks that read the model itself: what it gives each token, and what goes on inside it. Nothing is generated."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from moored.data.schema import Row
from moored.errors import NeverSupported, require
from moored.judges.base import Exchange, Verdict
from moored.metrics.interval import weighted_bootstrap
from moored.progress import Progress
from moored.tasks.base import Depth, Outcome, Task
from moored.tasks.subject import Loaded, Subject

if TYPE_CHECKING:
    from torch import Tensor

    from moored.data.chat import Encoded


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What was read on one row.

    Args:
        value: mean over the row's tokens, in the unit that the metric takes.
        tokens: that it is a mean over, at least 1.
        depths: by depth, the same mean there and that of the angle (1 - cosine); none where one number is all.
    """

    value: float
    tokens: int
    depths: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class ReadingTask(Task):
    """Base of tasks that read a model.

    Numbers are read in the precision of the weights in memory and summed up in fp32. Where weights are in bf16, two
    models that differ only in rounding are about 0.01 apart in relative distance; a model and itself are 0 apart.

    Args:
        data: see `Task`.
        n: see `Task`.
        skip: see `Task`.
        seed: see `Task`.
        max_length: tokens kept of a row.

    Raises:
        ConfigError: n, skip or seed is below 0, or max_length below 1.
    """

    max_length: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.max_length >= 1, type(self).__name__, "max_length", ">= 1", self.max_length)

    def check(self, tuned: Loaded, aligned: Loaded) -> None:
        """Refuse two models that cannot be compared; nothing is read.

        Args:
            tuned: the model that is measured.
            aligned: the model that its tuning started from.

        Raises:
            NeverSupported: they have other tokens or shapes.
        """

    def words(self, rows: int) -> str:
        """See `Task.words`."""
        return f"read {self.name} ({rows} prompts)"

    @abstractmethod
    def read(self, rows: Sequence[Row], subject: Subject, progress: Progress | None) -> list[Reading]:
        """One reading per row, in their order."""

    def over_answers(
        self,
        rows: Sequence[Row],
        subject: Subject,
        progress: Progress | None,
        of: Callable[[Tensor, Tensor], Tensor],
    ) -> list[Reading]:
        """For `read`: a number for every token of every answer.

        Args:
            rows: see `measure`.
            subject: see `measure`.
            progress: see `measure`.
            of: of logits and the answer tokens that they are to foretell, a number for each token.
        """
        from moored.hf.readings import answer_logits, answers_by_row, batches

        loaded = subject.model_for(self.name)
        found: dict[int, Reading] = {}
        for chosen, batch in batches(encoded(loaded, rows, self.max_length), loaded.tokenizer.pad_token_id):
            numbers = answers_by_row(of(*answer_logits(loaded.model, batch)), batch)
            found |= {
                i: Reading(value=float(row.mean()), tokens=len(row)) for i, row in zip(chosen, numbers, strict=True)
            }
            if progress:
                progress(len(found), len(rows), self.name)
        return [found[i] for i in range(len(rows))]

    def measure(self, rows: Sequence[Row], subject: Subject, progress: Progress | None = None) -> Outcome:
        """Read, and sum up."""
        readings = self.read(rows, subject, progress)
        by = f"{self.name}/{self.version}"
        verdicts = tuple(
            Verdict(value=one.value, reason=f"mean over {one.tokens} tokens", judge=by, weight=one.tokens)
            for one in readings
        )
        return Outcome(
            task=self.name,
            version=self.version,
            estimate=self.metric.estimate(verdicts),
            exchanges=tuple(Exchange(prompt=row.question, answer="", reference=row.answer) for row in rows),
            verdicts=verdicts,
            depths=self._depths(readings),
        )

    def _depths(self, readings: Sequence[Reading]) -> tuple[Depth, ...]:
        """The means at each depth, rows weighted by their tokens."""
        if not readings[0].depths:
            return ()
        weights = [one.tokens for one in readings]
        distances, angles = (
            [list(at) for at in zip(*([depth[which] for depth in one.depths] for one in readings), strict=True)]
            for which in (0, 1)
        )
        bounds = weighted_bootstrap(distances, weights)
        whole = self.metric.estimate([Verdict(value=0.0, reason="", judge="", weight=weight) for weight in weights])

        def mean(values: Sequence[float]) -> float:
            return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)

        return tuple(
            Depth(
                depth=depth,
                distance=replace(whole, value=mean(at), low=min(low, mean(at)), high=max(high, mean(at))),
                angle=mean(turned),
            )
            for depth, (at, turned, (low, high)) in enumerate(zip(distances, angles, bounds, strict=True))
        )


def as_served(loaded: Loaded, row: Row) -> Row:
    """The row with what the model must be served with.

    Args:
        loaded: the model.
        row: as it is in the data.
    """
    return replace(row, messages=tuple(loaded.serving.apply(row.messages))) if loaded.serving else row


def encoded(loaded: Loaded, rows: Sequence[Row], max_length: int) -> list[Encoded]:
    """The rows as the model is served, with their answers as labels.

    Args:
        loaded: the model.
        rows: with answers.
        max_length: tokens kept of a row.

    Raises:
        DataError: nothing of an answer is left.
    """
    from moored.data.chat import encode

    return [encode(loaded.tokenizer, as_served(loaded, row), max_length=max_length) for row in rows]


def check_vocabularies(task: str, subject: Loaded, aligned: Loaded) -> None:
    """Refuse two models whose tokens are not the same.

    Args:
        task: who compares, for the message.
        subject: the model that is measured.
        aligned: the model that it is compared with.

    Raises:
        NeverSupported: another number of logits, or other tokens.
    """
    sizes = [each.model.config.get_text_config().vocab_size for each in (subject, aligned)]
    if sizes[0] != sizes[1]:
        raise NeverSupported(
            f"{task} compares token by token, and the vocabularies differ: {sizes[0]} logits against the aligned "
            f"model's {sizes[1]}; give the model that tuning really started from, or leave the task out"
        )
    if subject.tokenizer is not aligned.tokenizer and subject.tokenizer.get_vocab() != aligned.tokenizer.get_vocab():
        raise NeverSupported(
            f"{task} compares token by token, and the two tokenizers have other tokens; give the model that tuning "
            "really started from, or leave the task out"
        )
