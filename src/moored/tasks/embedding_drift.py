# SPDX-License-Identifier: Apache-2.0
"""How far have the model's hidden states moved from those of the model that it was tuned from?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from moored.data.schema import Row
from moored.errors import NeverSupported
from moored.method import Need
from moored.metrics.base import Metric
from moored.metrics.drift import RelativeDrift
from moored.progress import Progress
from moored.tasks.reading import Reading, ReadingTask, check_vocabularies
from moored.tasks.subject import Loaded, Subject

if TYPE_CHECKING:
    from moored.data.chat import Encoded


@dataclass(frozen=True, kw_only=True)
class EmbeddingDrift(ReadingTask):
    """Drift of the prompts' hidden states, layer by layer: 1/T sum_t ||e_t(tuned) - e_t(aligned)|| / ||e_t(aligned)||.

    e_t is the hidden state of token t, and T are the tokens of all prompts together. The estimate is the drift of the
    last hidden states, behind the final norm, which the output layer reads; `Outcome.depths` has every layer, and the
    mean of 1 - cosine beside it. Both models read the same tokens, without what either is served with. A model against
    itself has exactly 0.

    Vaccine's "harmful embedding drift" (Sec. 3.1) is the distance itself, on alignment rows; here it is divided by the
    length of what was there, so that layers and models compare. `DriftMonitor` follows the distance during training.

    Args:
        data: "synthetic" (harmful requests), a local .jsonl/.json/.csv file, or a hub id.
        n: how many prompts, the first n of a seeded shuffle; all if there are fewer; 0 = all.
        skip: rows of that shuffle to leave out first.
        seed: of that shuffle.
        max_length: tokens kept of a prompt.

    Raises:
        ConfigError: n, skip or seed below 0, or max_length below 1.
        DataError: from `rows`, the data is missing, empty or malformed.
        NeedsError: from `measure`, the aligned model is not known, or the model is behind a URL.
        NeverSupported: from `measure`, the vocabularies, or the shapes of the hidden states, differ.

    References:
        Huang et al. 2024, Vaccine (arXiv 2402.01109).
    """

    name: ClassVar[str] = "embedding_drift"
    version: ClassVar[str] = "1"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.ALIGNED})

    def rows(self) -> list[Row]:
        """The prompts, without answers."""
        return self.sample("requests", "harmful", answers=False)

    @property
    def metric(self) -> Metric:
        """Mean over tokens."""
        return RelativeDrift()

    def check(self, tuned: Loaded, aligned: Loaded) -> None:
        """Other tokens, or hidden states of another shape, are refused."""
        check_vocabularies(self.name, tuned, aligned)
        _check_shapes(tuned, aligned)

    def read(self, rows: Sequence[Row], subject: Subject, progress: Progress | None) -> list[Reading]:
        """The mean drift of each prompt's tokens, at every depth."""
        from moored.hf.readings import batches, by_row, hidden_states
        from moored.ops.drift import angle, relative_distance

        tuned, aligned = subject.model_for(self.name), subject.aligned_for(self.name)
        self.check(tuned, aligned)
        found: dict[int, Reading] = {}
        for chosen, batch in batches(self._prompts(aligned, rows), aligned.tokenizer.pad_token_id):
            counts = batch["attention_mask"].sum(dim=1).tolist()
            drifts: list[list[tuple[float, float]]] = [[] for _ in chosen]
            pairs = zip(hidden_states(aligned.model, batch), hidden_states(tuned.model, batch), strict=True)
            for start, now in pairs:
                distances = by_row(relative_distance(start.float(), now.float()), counts)
                angles = by_row(angle(start.float(), now.float()), counts)
                for row, distance, turned in zip(drifts, distances, angles, strict=True):
                    row.append((float(distance.mean()), float(turned.mean())))
            for i, row, tokens in zip(chosen, drifts, counts, strict=True):
                found[i] = Reading(value=row[-1][0], tokens=tokens, depths=tuple(row))
            if progress:
                progress(len(found), len(rows), self.name)
        return [found[i] for i in range(len(rows))]

    def _prompts(self, aligned: Loaded, rows: Sequence[Row]) -> list[Encoded]:
        """The prompts as tokens, which are no answers."""
        from moored.data.chat import IGNORED, prompt_ids

        ids = [prompt_ids(aligned.tokenizer, row.prompt)[: self.max_length] for row in rows]
        return [{"input_ids": one, "attention_mask": [1] * len(one), "labels": [IGNORED] * len(one)} for one in ids]


def _check_shapes(tuned: Loaded, aligned: Loaded) -> None:
    """Refuse models whose hidden states cannot be subtracted."""
    shapes = []
    for each in (tuned, aligned):
        config = each.model.config.get_text_config()
        shapes.append((config.num_hidden_layers, config.hidden_size))
    if shapes[0] != shapes[1]:
        raise NeverSupported(
            f"embedding_drift subtracts hidden states, and the models have {shapes[0][0]} layers of width "
            f"{shapes[0][1]} and {shapes[1][0]} of width {shapes[1][1]}; give the model that tuning started from"
        )
