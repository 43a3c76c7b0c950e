# SPDX-License-Identifier: Apache-2.0
"""What a task can ask and look at: a model in memory, or one behind a URL, which only answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from moored.data.schema import Prompts
from moored.errors import NeedsError
from moored.progress import Progress
from moored.sampling import Decoding
from moored.serving import Serving

if TYPE_CHECKING:
    from moored.endpoint import Endpoint

Ask = Callable[[Prompts, Decoding, "Progress | None"], list[str]]
"""Answers, one per prompt, in their order."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model in memory.

    Args:
        model: a causal language model, plain or with a PEFT adapter.
        tokenizer: its tokenizer.
        serving: what every request must carry.
    """

    model: Any
    tokenizer: Any
    serving: Serving | None = None


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The model that is measured.

    Args:
        ask: its answers.
        loaded: the model itself; None behind a URL.
        aligned: gives the model that its tuning started from; None where that is not known. The start itself gives
            itself, so that it is in memory once.
    """

    ask: Ask
    loaded: Loaded | None = None
    aligned: Callable[[], Loaded] | None = None

    @classmethod
    def of(cls, loaded: Loaded, aligned: Callable[[], Loaded] | None = None) -> Subject:
        """A model in memory.

        Args:
            loaded: the model.
            aligned: see `Subject`.
        """

        def ask(prompts: Prompts, how: Decoding, progress: Progress | None) -> list[str]:
            from moored.hf.generate import generate

            return generate(
                loaded.model,
                loaded.tokenizer,
                prompts,
                max_new_tokens=how.max_new_tokens,
                sampling=how.sampling,
                serving=loaded.serving,
                progress=progress,
            )

        return cls(ask=ask, loaded=loaded, aligned=aligned)

    @classmethod
    def behind(cls, endpoint: Endpoint) -> Subject:
        """A model behind a URL.

        Args:
            endpoint: where it is.
        """

        def ask(prompts: Prompts, how: Decoding, progress: Progress | None) -> list[str]:
            return endpoint.answers(
                prompts, max_new_tokens=how.max_new_tokens, sampling=how.sampling, progress=progress
            )

        return cls(ask=ask)

    def remembering(self) -> Subject:
        """The same, which is not asked again for the answers that it gave last."""
        last: list[tuple[Prompts, Decoding, list[str]]] = []

        def ask(prompts: Prompts, how: Decoding, progress: Progress | None) -> list[str]:
            if not last or last[0][:2] != (prompts, how):
                last[:] = [(prompts, how, self.ask(prompts, how, progress))]
            return last[0][2]

        return replace(self, ask=ask)

    def model_for(self, task: str) -> Loaded:
        """The model itself.

        Args:
            task: who asks, for the message.

        Raises:
            NeedsError: it is behind a URL.
        """
        if self.loaded is None:
            raise NeedsError(
                f"{task} reads the model itself, and a model behind a URL gives only answers; leave it out"
            )
        return self.loaded

    def aligned_for(self, task: str) -> Loaded:
        """The model that its tuning started from.

        Args:
            task: who asks, for the message.

        Raises:
            NeedsError: it is not known.
        """
        if self.aligned is None:
            raise NeedsError(
                f"{task} compares with the aligned model that tuning started from, and it is not known; give it "
                "(`--base` of `moored audit`, `aligned` of `evaluate`), or leave the task out"
            )
        return self.aligned()
