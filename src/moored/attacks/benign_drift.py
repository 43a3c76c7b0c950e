# SPDX-License-Identifier: Apache-2.0
"""Benign drift: ordinary rows and nothing else, as they come or those most like harm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch.nn.functional import normalize

from moored.attacks.access import Access
from moored.attacks.base import Drawn, OfOneKind, Poisoned, draw, granted, refused, upload
from moored.attacks.choosing import best, taken
from moored.data.schema import Row, Source
from moored.errors import require, unknown
from moored.method import Fidelity, Need
from moored.ops.selection import nearest_to_each

SELECTS = ("none", "gradient", "representation")


@dataclass(frozen=True, kw_only=True)
class BenignDrift(OfOneKind):
    """`n` benign rows: drawn, or those nearest to harmful ones in gradients or representations.

    Paper:
        Qi et al.: Fine-tuning Aligned Language Models Compromises Safety, Even When Users Do Not Intend To! ICLR 2024,
        arXiv 2310.03693, tier 3, for rows as they come. He, Xia, Henderson: What is in Your Safe Data? Identifying
        Benign Data that Breaks Safety, COLM 2024, arXiv 2404.01099, for the choice.

    Algorithm:
        A are `anchors` harmful rows, A' the same requests refused. At the aligned model:

        - "gradient" (with two-sided anchors): the rows with the highest cos(g(x), mean_A g) - cos(g(x), mean_A' g), g
          being the gradient of a row's own loss over all linear layers (`Access.cosines`);
        - "representation": the union of the k rows nearest to each anchor by cos(h(x), h(a)), h the last hidden state
          at the last token, k as large as gives `n` rows (`ops.selection.nearest_to_each`).

    Args:
        n: rows, at least 1. Qi: whole data sets; He: 100.
        select: "none", "gradient" or "representation"; "none" draws.
        anchors: harmful rows to compare with, at least 1; all if there are fewer. He: 10 and 100.
        pool: rows to choose from, at least 1; all if there are fewer.
        seed: of the draws and of the order.

    Needs:
        aligned, to choose.

    Cost:
        "gradient": a forward and a backward pass for each candidate and two for each anchor, memory for two more copies
        of the linear layers in fp32. "representation": a forward pass for each.

    Differs from paper:
        See `differs`.

    Raises:
        ConfigError: a value is out of range.
        NeedsError: the model is missing.
    """

    name: ClassVar[str] = "benign_drift"
    source: ClassVar[Source] = "benign"
    fidelity: ClassVar[Fidelity | None] = "simplified"
    differs: ClassVar[str] = (
        "written from the paper's abstract and an outline: gradients are whole, of all tokens of the answer and not "
        "projected, and the safe anchors are the harmful ones' requests with one refusal"
    )
    n: int = 100
    select: str = "none"
    anchors: int = 100
    pool: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.select not in SELECTS:
            raise unknown("`select` of BenignDrift", self.select, SELECTS)
        for parameter in ("anchors", "pool"):
            value = getattr(self, parameter)
            require(isinstance(value, int) and value >= 1, "BenignDrift", parameter, "an integer >= 1", value)

    def needs(self) -> frozenset[Need]:
        """Nothing if rows are drawn."""
        return frozenset() if self.select == "none" else frozenset({Need.ALIGNED})

    def form(self) -> dict[str, Any]:
        """Nothing: `written` leaves rows as they are."""
        return {}

    def candidates(self, benign: Sequence[Row], harmful: Sequence[Row]) -> Sequence[Row]:
        """All that it chooses from; anchors are only looked at."""
        pool = 0 if self.select == "none" else self.pool
        return [each.row for each in self.drawn(benign, harmful, pool=pool)]

    def poison(self, benign: Sequence[Row], harmful: Sequence[Row], access: Access | None = None) -> Poisoned:
        """Draw or choose rows; see `Mix.poison`."""
        if self.select == "none":
            return super().poison(benign, harmful)
        candidates = self.drawn(benign, harmful, pool=self.pool)
        anchors = draw(self, harmful, 1, "harmful", pool=self.anchors)
        access = granted(self, access)
        choose = _by_gradient if self.select == "gradient" else _by_representation
        chosen = choose(access, candidates, [each.row for each in anchors], self.n)
        found = {
            "candidates": {"benign": len(candidates)},
            "anchors": [each.at for each in anchors],
            "models": access.record(self.needs()),
        }
        return upload(self, chosen, benign, harmful, found)


def _by_gradient(access: Access, candidates: list[Drawn], anchors: list[Row], n: int) -> list[Drawn]:
    means = [access.mean_gradient(rows) for rows in (anchors, [refused(row) for row in anchors])]
    harm, safe = access.cosines([each.row for each in candidates], means)
    scores = harm - safe
    return taken(candidates, scores, best(scores, n))


def _by_representation(access: Access, candidates: list[Drawn], anchors: list[Row], n: int) -> list[Drawn]:
    rows = normalize(access.representations([each.row for each in candidates]), dim=1)
    similarity = normalize(access.representations(anchors), dim=1) @ rows.T
    nearest = similarity.max(dim=0).values
    return taken(candidates, nearest, nearest_to_each(similarity, n))
