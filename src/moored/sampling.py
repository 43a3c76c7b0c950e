# SPDX-License-Identifier: Apache-2.0
"""How answers are drawn when they are not greedy."""

from __future__ import annotations

from dataclasses import dataclass

from moored.errors import require


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Draw each token instead of taking the likeliest.

    An attacker asks more than once: an answer that is refused at temperature 0 may come at temperature 1.

    Args:
        temperature: logits are divided by it; above 0.
        top_p: tokens are drawn from the smallest set of likeliest tokens that holds this much probability, in (0, 1].
        seed: of all answers. With the model here, an answer is a function of seed, prompt, and how often that prompt
            came before, whatever else is asked beside it; behind a URL it is what the server makes of it.

    Raises:
        ConfigError: a value is out of range.
    """

    temperature: float | int = 1.0
    top_p: float | int = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            self.temperature > 0, "Sampling", "temperature", "> 0 (greedy answers need no sampling)", self.temperature
        )
        require(0 < self.top_p <= 1, "Sampling", "top_p", "above 0 and at most 1", self.top_p)
        require(self.seed >= 0, "Sampling", "seed", ">= 0", self.seed)


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How answers are asked for.

    Args:
        max_new_tokens: tokens per answer.
        sampling: how they are drawn; None takes the likeliest token each time.
        samples: answers per prompt: the prompts stand so many times, one round after the other.
    """

    max_new_tokens: int
    sampling: Sampling | None = None
    samples: int = 1
