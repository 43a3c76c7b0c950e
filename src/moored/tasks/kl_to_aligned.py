# SPDX-License-Identifier: Apache-2.0
"""How far have the model's next tokens moved from those of the model that it was tuned from?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from moored.data.schema import Row
from moored.errors import NeverSupported
from moored.method import Need
from moored.metrics.base import Metric
from moored.metrics.divergence import TokenDivergence
from moored.progress import Progress
from moored.tasks.reading import Reading, ReadingTask, check_vocabularies, encoded
from moored.tasks.subject import Loaded, Subject


@dataclass(frozen=True, kw_only=True)
class KLToAligned(ReadingTask):
    """KL(aligned || tuned) at the tokens of the reference answers, 1/T sum_t sum_v p_tv (log p_tv - log q_tv) [nat].

    p is the aligned model's distribution over the vocabulary, q the tuned model's, and T are the tokens of all answers
    together. Each model reads the prompt as it is served; softmax is in fp32. A model against itself has exactly 0.

    Args:
        data: "synthetic", a local .jsonl/.json/.csv file, or a hub id; every row has its answer.
        n: how many rows, the first n of a seeded shuffle; all if there are fewer; 0 = all.
        skip: rows of that shuffle to leave out first.
        seed: of that shuffle.
        max_length: tokens kept of a row, prompt included; answers lose their end.

    Raises:
        ConfigError: n, skip or seed below 0, or max_length below 1.
        DataError: from `rows`, the data is missing, empty or malformed, or a row has no answer.
        NeedsError: from `measure`, the aligned model is not known, or the model is behind a URL.
        NeverSupported: from `measure`, the vocabularies differ.
    """

    name: ClassVar[str] = "kl_to_aligned"
    version: ClassVar[str] = "1"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.ALIGNED})

    def rows(self) -> list[Row]:
        """The rows, with their answers."""
        return self.sample("utility-test", "benign", answers=True)

    @property
    def metric(self) -> Metric:
        """Mean over tokens."""
        return TokenDivergence()

    def check(self, tuned: Loaded, aligned: Loaded) -> None:
        """Other tokens are refused."""
        check_vocabularies(self.name, tuned, aligned)

    def read(self, rows: Sequence[Row], subject: Subject, progress: Progress | None) -> list[Reading]:
        """The mean divergence at each answer's tokens; of either model, one batch of logits is in memory."""
        from moored.data.chat import AnswerCollator
        from moored.hf.readings import answer_logits, answers_by_row, batches
        from moored.ops.divergence import kl

        tuned, aligned = subject.model_for(self.name), subject.aligned_for(self.name)
        self.check(tuned, aligned)
        ours, theirs = (encoded(each, rows, self.max_length) for each in (tuned, aligned))
        collate = AnswerCollator(aligned.tokenizer.pad_token_id)
        found: dict[int, Reading] = {}
        for chosen, batch in batches(ours, tuned.tokenizer.pad_token_id):
            q, answers = answer_logits(tuned.model, batch)
            p, same = answer_logits(aligned.model, collate([theirs[i] for i in chosen]))
            _check_answers(answers.tolist(), same.tolist(), self.max_length)
            for i, p_row, q_row in zip(chosen, answers_by_row(p, batch), answers_by_row(q, batch), strict=True):
                found[i] = Reading(value=float(kl(p_row, q_row)) / len(q_row), tokens=len(q_row))
            if progress:
                progress(len(found), len(rows), self.name)
        return [found[i] for i in range(len(rows))]


def _check_answers(ours: Sequence[int], theirs: Sequence[int], max_length: int) -> None:
    """Refuse answers that the two models read as other tokens."""
    if ours != theirs:
        raise NeverSupported(
            "kl_to_aligned compares token by token, and the two models are given other tokens for one answer: their "
            f"chat templates end answers differently, or `max_length` ({max_length}) cuts one prompt more than the "
            "other; raise it, or leave the task out"
        )
