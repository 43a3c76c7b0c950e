# SPDX-License-Identifier: Apache-2.0
"""Choose rows: by score with every category in proportion, by nearness to anchors, or for what they add up to."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from moored.ops.factored import ratio


def best_rows(
    scores: Sequence[float], prompts: Sequence[Hashable], categories: Sequence[Hashable], fraction: float
) -> list[int]:
    """The positions of the rows to keep, ascending.

    Of every prompt only the best row stands (ties: the first). Of a category with n prompts the best
    max(1, round(fraction * n)) are kept, so every category keeps its share and none vanishes.

    Args:
        scores: one per row; higher is better.
        prompts: equal for rows with one prompt.
        categories: equal for rows of one category; all equal means that nothing is balanced.
        fraction: of each category's prompts, in 0-1.
    """
    best: dict[Hashable, int] = {}
    for row, prompt in enumerate(prompts):
        if prompt not in best or scores[row] > scores[best[prompt]]:
            best[prompt] = row
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for row in best.values():
        groups[categories[row]].append(row)
    kept = []
    for rows in groups.values():
        rows.sort(key=lambda row: (-scores[row], row))
        kept += rows[: max(1, round(fraction * len(rows)))]
    return sorted(kept)


def nearest_to_each(similarity: Float[Tensor, "anchors rows"], count: int) -> list[int]:
    """The union of every anchor's k nearest rows, k as large as gives `count` rows: nearest, second nearest, and so on.

    Within one k, anchors take turns in their order, and a row that is there already is not taken again.

    Args:
        similarity: of every row to every anchor.
        count: rows to take, at most as many as there are.
    """
    taken: dict[int, None] = {}
    for column in torch.argsort(similarity, dim=1, descending=True, stable=True).T.tolist():
        for row in column:
            if len(taken) < count:
                taken.setdefault(row, None)
    return list(taken)


def greedy_match(
    sketches: Float[Tensor, "rows modules size"], target: Float[Tensor, "modules size"], count: int
) -> list[int]:
    """Rows whose sum points along `target` in every module: each time the row that raises mean_l cos(sum_l, t_l) most.

    Args:
        sketches: of the rows.
        target: t.
        count: rows to take, at most as many as there are.
    """
    sketches, target = sketches.double(), target.double()
    along, squares = torch.einsum("rms,ms->rm", sketches, target), sketches.square().sum(dim=2)
    lengths = target.norm(dim=1)
    total, taken = torch.zeros_like(target), []
    free = torch.ones(len(sketches), dtype=torch.bool)
    for _ in range(count):
        cross = torch.einsum("rms,ms->rm", sketches, total)
        norms = (total.square().sum(dim=1) + 2 * cross + squares).clamp(min=0).sqrt()
        cosines = ratio((total * target).sum(dim=1) + along, norms * lengths).mean(dim=1)
        row = int(cosines.masked_fill(~free, -math.inf).argmax())
        total = total + sketches[row]
        free[row] = False
        taken.append(row)
    return taken


def mean_cosine(sums: Float[Tensor, "modules size"], target: Float[Tensor, "modules size"]) -> float:
    """mean_l cos(s_l, t_l); 0 counts for a module where either vanishes.

    Args:
        sums: s.
        target: t.
    """
    sums, target = sums.double(), target.double()
    return float(ratio((sums * target).sum(dim=1), sums.norm(dim=1) * target.norm(dim=1)).mean())
