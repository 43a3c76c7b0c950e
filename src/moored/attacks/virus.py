# SPDX-License-Identifier: Apache-2.0
"""Virus: harmful rows that a guard lets pass and that still pull the weights where harm pulls them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from moored.attacks.access import Access
from moored.attacks.base import Choice, granted
from moored.attacks.choosing import Choosing, beside, best, taken
from moored.data.schema import Row, Source
from moored.errors import ConfigError, require
from moored.judges.base import Exchange, Judge
from moored.judges.denylist import Denylist
from moored.method import Fidelity, Need


@dataclass(frozen=True, kw_only=True)
class Virus(Choosing):
    """A harmful mix whose harmful rows pass the provider's screen of uploads.

    Paper:
        Huang, Hu, Ilhan, Tekin, Liu: Virus: Harmful Fine-tuning Attack for Large Language Models Bypassing Guardrail
        Moderation, 2025, arXiv 2501.17433.

    Algorithm:
        g(x) is the gradient of row x's own loss at the aligned model, over all linear layers:

        1. g_h = mean of g over all candidates, those included that the guard flags;
        2. F(x) = <g(x), g_h> / (||g(x)|| ||g_h||) for the candidates that the guard lets pass (`Access.cosines`);
        3. the rows with the highest F are taken.

    Args:
        n: rows of the upload, at least 1.
        ratio: share of harmful rows, 0 to 1.
        seed: of the draws and of the order.
        pool: harmful rows looked at, at least 1.
        guard: the screen, a judge of harm; what it cannot judge does not pass. Paper: Llama Guard 2, in a recipe
            `guard: {guard: {model: meta-llama/Llama-Guard-3-8B, form: llama_guard}}`. Ours: a list of words.

    Needs:
        aligned.

    Cost:
        Two forward and two backward passes for each candidate, memory for one more copy of the linear layers in fp32,
        and the guard.

    Differs from paper:
        See `differs`.

    Raises:
        ConfigError: a value is out of range, the guard judges something else, or it lets too few rows pass.
        NeedsError: the model is missing.
    """

    name: ClassVar[str] = "virus"
    chooses: ClassVar[Source] = "harmful"
    fidelity: ClassVar[Fidelity | None] = "variant"
    differs: ClassVar[str] = (
        "rows are chosen, not optimised token by token: a guard's verdict decides instead of its loss, and the "
        "gradient to match is the mean of all candidates instead of the row's own before it was changed"
    )
    guard: Judge = Denylist()

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.guard.judges == "harmful", "Virus", "guard", "a judge of what is harmful", self.guard.name)

    def needs(self) -> frozenset[Need]:
        """The model whose gradients are matched."""
        return frozenset({Need.ALIGNED})

    def loads(self) -> tuple[str, ...]:
        """The guard's."""
        return self.guard.loads()

    def asks(self) -> tuple[str, ...]:
        """The guard."""
        return (self.guard.identity,)

    def parameters(self) -> dict[str, Any]:
        """The configuration as plain JSON, the guard by name."""
        return super().parameters() | {"guard": {self.guard.name: asdict(self.guard)}}  # type: ignore[call-overload]

    def choose(self, drawn: Choice, access: Access | None) -> Choice:
        """Steps 1-3."""
        access = granted(self, access)
        if not self.harmful_count:
            return replace(drawn, harmful=[])
        rows = [each.row for each in drawn.harmful]
        passing = [each for each, fine in zip(drawn.harmful, passed(self.guard, rows), strict=True) if fine]
        if len(passing) < self.harmful_count:
            raise ConfigError(
                f"the `guard` of Virus, {self.guard.label}, lets {len(passing)} of {len(rows)} harmful rows pass, and "
                f"{self.harmful_count} are needed: lower `ratio`, raise `pool`, or give other rows"
            )
        (matches,) = access.cosines([each.row for each in passing], [access.mean_gradient(rows)])
        chosen = best(matches, self.harmful_count)
        found = {
            "candidates": {"harmful": len(rows), "passed": len(passing)},
            "guard": self.guard.label,
            "models": access.record(self.needs()),
            "measured": beside({"cosine": matches}, chosen),
        }
        return Choice(harmful=taken(passing, matches, chosen), benign=drawn.benign, found=found)


def passed(guard: Judge, rows: Sequence[Row]) -> list[bool]:
    """Which rows a guard lets into an upload; what it cannot judge stays out.

    Args:
        guard: a judge of harm.
        rows: with answers.
    """
    verdicts = guard.judge([Exchange(prompt=row.question, answer=row.answer) for row in rows])
    return [verdict.value < 0.5 for verdict in verdicts]
