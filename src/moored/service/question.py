# SPDX-License-Identifier: Apache-2.0
"""What a served model is asked, and how it answers: the words between routes and engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast, runtime_checkable

from moored.data.schema import Message
from moored.service.registry import Served
from moored.serving import Serving

Finish = Literal["stop", "length"]

Charge = Callable[[int, int], None]
"""Told the tokens of a prompt and the most that its answers can have before anything is computed; raises `ApiProblem`
if that is too much."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One prompt, and how it is to be answered.

    Args:
        messages: turns of a chat, with role and content; () if `prompt` is given.
        prompt: text or tokens to go on from, as they are.
        tools: functions that the chat template is told of.
        n: answers, at least 1.
        max_tokens: per answer; None: up to `most_tokens`, and what fits.
        most_tokens: the longest answer that is served.
        temperature: 0 takes the likeliest token each time.
        top_p: see `Sampling`.
        seed: of the draw; the same question with the same seed has the same answers.
        stop: strings that end an answer.
        chances: how many likeliest tokens to name beside each token taken; None: no log-probabilities at all.
    """

    messages: tuple[dict[str, Any], ...] = ()
    prompt: str | tuple[int, ...] = ""
    tools: tuple[dict[str, Any], ...] = ()
    n: int = 1
    max_tokens: int | None = None
    most_tokens: int = 1024
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    chances: int | None = None


def turns(question: Question, serving: Serving | None) -> list[Message]:
    """The chat of a question as the model must read it, with what it must be served with in front, once.

    Args:
        question: with messages.
        serving: what every request must carry.
    """
    plain = cast(list[Message], [_known(message) for message in question.messages])
    return serving.apply(plain) if serving else plain


def _known(message: dict[str, Any]) -> dict[str, Any]:
    """With a role that templates know: "developer" is a newer name of "system"."""
    return message | {"role": "system"} if message["role"] == "developer" else message


@dataclass(frozen=True, kw_only=True)
class Chance:
    """How likely a token was.

    Args:
        token: its text; half a character shows as U+FFFD.
        bytes: what it adds to the answer.
        logprob: natural logarithm of its probability.
        top: the likeliest tokens in its place.
    """

    token: str
    bytes: bytes
    logprob: float
    top: tuple[Chance, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Piece:
    """The next bit of an answer.

    Args:
        index: of the answer, from 0.
        text: may be "".
        chances: of the tokens in the text, if they were asked for.
        finish: why the answer ends here; None if it goes on.
    """

    index: int
    text: str
    chances: tuple[Chance, ...] = ()
    finish: Finish | None = None


class Answering:
    """Answers on their way. Made and read in one event loop; `put` and `fail` may be called from any thread.

    Args:
        answers: how many there will be.
        cancelled: called once when nobody waits for the rest any more.
    """

    def __init__(self, answers: int, cancelled: Callable[[], object] = lambda: None):
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        self._begun: asyncio.Future[None] = self._loop.create_future()
        self._left = answers
        self._cancelled = cancelled
        self.prompt_tokens = 0
        self.completion_tokens = 0
        """Taken so far, by all answers, those that end them included."""

    async def begin(self) -> None:
        """Wait until the question is accepted.

        Raises:
            ApiProblem: it is not.
        """
        try:
            await self._begun
        except asyncio.CancelledError:
            self.cancel()
            raise

    async def __aiter__(self) -> AsyncIterator[Piece]:
        while self._left:
            piece = await self._pieces.get()
            if isinstance(piece, Exception):
                self._left = 0
                raise piece
            self._left -= piece.finish is not None
            yield piece

    def cancel(self) -> None:
        """Nobody waits any more."""
        if self._left:
            self._left = 0
            self._cancelled()

    def accept(self, prompt_tokens: int) -> None:
        """The question is accepted.

        Args:
            prompt_tokens: as the model reads it.
        """
        self.prompt_tokens = prompt_tokens

        def arrive() -> None:
            if not self._begun.done():
                self._begun.set_result(None)

        self._call(arrive)

    def put(self, piece: Piece, tokens: int) -> None:
        """The next bit.

        Args:
            piece: of any of the answers.
            tokens: that were taken for it.
        """

        def arrive() -> None:
            self.completion_tokens += tokens
            self._pieces.put_nowait(piece)

        self._call(arrive)

    def fail(self, error: Exception) -> None:
        """It does not go on.

        Args:
            error: raised to who waits.
        """

        def arrive() -> None:
            if self._begun.done():
                self._pieces.put_nowait(error)
            else:
                self._begun.set_exception(error)

        self._call(arrive)

    def _call(self, what: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(what)
        except RuntimeError:  # the loop is closed: the server is going down
            self._left = 0


@runtime_checkable
class Engine(Protocol):
    """What answers."""

    async def ask(self, served: Served, question: Question, charge: Charge) -> Answering:
        """Ask a model that may be served.

        Args:
            served: what `Registry.open` gave.
            question: what.
            charge: see `Charge`.

        Raises:
            ApiProblem: it cannot be answered, or not now.
        """

    def unload(self, name: str) -> None:
        """Forget a model's weights.

        Args:
            name: of a model that is served no more.
        """

    def close(self) -> None:
        """Stop; what is being answered fails."""
