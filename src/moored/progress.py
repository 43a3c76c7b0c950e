# SPDX-License-Identifier: Apache-2.0
"""How long work says how far it is, what it has found so far, and how it is asked to stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what). It may raise `Pause`."""


class Words(str):
    """What progress says, with the numbers behind it.

    Args:
        text: for people.
        numbers: for programs: of training, "step" and what `moored.hf.train.LOGGED` names once the trainer has logged
            it ("loss", "accuracy": share of answer tokens foreseen), and "saved": the step of a checkpoint that was
            just written.
    """

    numbers: Mapping[str, int | float]

    def __new__(cls, text: str, numbers: Mapping[str, int | float]) -> Words:  # noqa: D102, as the class says
        made = super().__new__(cls, text)
        made.numbers = dict(numbers)
        return made


class Pause(Exception):
    """Raised by a `Progress` to stop work that will be gone on with: training first writes a checkpoint."""


Found = Callable[[int, str], None]
"""Called with an answer as soon as it is there: the number of its prompt, from 0, and the text."""
