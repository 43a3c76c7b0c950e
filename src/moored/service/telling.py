# SPDX-License-Identifier: Apache-2.0
"""Answers in the objects that OpenAI's client reads: whole, or as a stream of server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from moored.service.asking import Asking
from moored.service.clock import now
from moored.service.ids import new_id
from moored.service.problems import ApiProblem
from moored.service.question import Answering, Chance, Piece

HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
"""Of a stream: nothing on the way may keep it back."""

_LOOK_S = 0.5


@runtime_checkable
class Shape(Protocol):
    """How one kind of answer is written down.

    Attributes:
        chunk: kind of object of a part of a stream.
    """

    chunk: ClassVar[str]

    def choice(self, index: int, text: str, chances: Sequence[Chance], finish: str | None) -> dict[str, Any]:
        """A whole answer."""

    def delta(self, piece: Piece, index: int) -> dict[str, Any]:
        """A bit of one."""

    def first(self, index: int) -> dict[str, Any] | None:
        """What a stream says of an answer before its first bit; None: nothing."""


@dataclass(kw_only=True)
class Told:
    """The answers to one request.

    Args:
        shape: chat or completion.
        model: the name that was asked for.
        kind: of object, for example "chat.completion".
        prefix: of the id.
        answerings: one for each prompt, `n` answers in each.
        n: answers to each prompt.
        curious: whether log-probabilities were asked for.
        before: what stands in front of each prompt's answers (`echo`).
    """

    shape: Shape
    model: str
    kind: str
    prefix: str
    answerings: Sequence[Answering]
    n: int
    before: Sequence[str] = ()
    id: str = field(init=False)
    created: int = field(init=False)

    def __post_init__(self) -> None:
        self.id, self.created = new_id(self.prefix), now()

    async def answer(self, request: Request, asked: Asking, headers: Mapping[str, str]) -> Response:
        """At once or as a stream, as it was asked for.

        Args:
            request: of the client.
            asked: its body.
            headers: that the answer is to have.

        Raises:
            ApiProblem: the model failed; of a stream that is one of its events.
        """
        if not asked.stream:
            return JSONResponse(await self.whole(request), headers=dict(headers))
        usage = bool(asked.stream_options and asked.stream_options.include_usage)
        return StreamingResponse(
            self.stream(usage=usage), media_type="text/event-stream", headers={**HEADERS, **headers}
        )

    async def whole(self, request: Request) -> dict[str, Any]:
        """All answers at once; they are cancelled when the client goes away.

        Args:
            request: of the client.

        Raises:
            ApiProblem: the model failed.
        """
        reading = asyncio.ensure_future(self._read())
        try:
            while not (await asyncio.wait([reading], timeout=_LOOK_S))[0]:
                if await request.is_disconnected():
                    break
            if not reading.done():
                raise ApiProblem(499, "The client went away.")
            return reading.result()
        finally:
            reading.cancel()
            self.cancel()

    async def stream(self, *, usage: bool) -> AsyncIterator[bytes]:
        """As server-sent events; what fails is one of them.

        Args:
            usage: say at the end how many tokens it took.
        """
        head = {"id": self.id, "object": self.shape.chunk, "created": self.created, "model": self.model}
        tail = {"usage": None} if usage else {}
        try:
            for number in range(self.n * len(self.answerings)):
                first = self.shape.first(number)
                if first is not None:
                    yield _event({**head, "choices": [first], **tail})
            async for piece, index in self._pieces():
                if piece.text or piece.finish or piece.chances:
                    yield _event({**head, "choices": [self.shape.delta(piece, index)], **tail})
            if usage:
                yield _event({**head, "choices": [], "usage": self.usage()})
            yield b"data: [DONE]\n\n"
        except ApiProblem as problem:
            yield _event(problem.body())
        finally:
            self.cancel()

    def usage(self) -> dict[str, int]:
        """Tokens read and written."""
        prompt = sum(each.prompt_tokens for each in self.answerings)
        completion = sum(each.completion_tokens for each in self.answerings)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def cancel(self) -> None:
        """Nobody waits any more."""
        for answering in self.answerings:
            answering.cancel()

    async def _read(self) -> dict[str, Any]:
        count = self.n * len(self.answerings)
        texts, finishes = [""] * count, [""] * count
        chances: list[list[Chance]] = [[] for _ in range(count)]
        async for piece, index in self._pieces():
            texts[index] += piece.text
            chances[index] += piece.chances
            finishes[index] = piece.finish or ""
        choices = [self.shape.choice(i, texts[i], chances[i], finishes[i]) for i in range(count)]
        head = {"id": self.id, "object": self.kind, "created": self.created, "model": self.model}
        return {**head, "choices": choices, "usage": self.usage()}

    async def _pieces(self) -> AsyncIterator[tuple[Piece, int]]:
        """Of all answers as they come, with the number of the answer."""
        found: asyncio.Queue[tuple[Piece, int] | Exception | None] = asyncio.Queue()

        async def follow(number: int, answering: Answering) -> None:
            try:
                if self.before:
                    for index in range(self.n):
                        await found.put((Piece(index=index, text=self.before[number]), number * self.n + index))
                async for piece in answering:
                    await found.put((piece, number * self.n + piece.index))
            except ApiProblem as problem:
                await found.put(problem)
            await found.put(None)

        followers = [asyncio.ensure_future(follow(*each)) for each in enumerate(self.answerings)]
        try:
            left = len(followers)
            while left:
                item = await found.get()
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    left -= 1
                else:
                    yield item
        finally:
            for follower in followers:
                follower.cancel()


@dataclass(frozen=True, kw_only=True)
class ChatShape:
    """Chat completions.

    Args:
        curious: whether log-probabilities were asked for.
    """

    chunk: ClassVar[str] = "chat.completion.chunk"
    curious: bool

    def choice(self, index: int, text: str, chances: Sequence[Chance], finish: str | None) -> dict[str, Any]:
        """See `Shape`."""
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "logprobs": self._logprobs(chances), "finish_reason": finish}

    def delta(self, piece: Piece, index: int) -> dict[str, Any]:
        """See `Shape`."""
        delta = {"content": piece.text} if piece.text or piece.chances else {}
        logprobs = self._logprobs(piece.chances) if piece.chances else None
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": piece.finish}

    def first(self, index: int) -> dict[str, Any]:
        """See `Shape`."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _logprobs(self, chances: Sequence[Chance]) -> dict[str, Any] | None:
        return {"content": [_of_chat(chance) for chance in chances], "refusal": None} if self.curious else None


@dataclass(frozen=True, kw_only=True)
class CompletionShape:
    """Plain completions.

    Args:
        curious: whether log-probabilities were asked for.
    """

    chunk: ClassVar[str] = "text_completion"
    curious: bool

    def choice(self, index: int, text: str, chances: Sequence[Chance], finish: str | None) -> dict[str, Any]:
        """See `Shape`."""
        return {"index": index, "text": text, "logprobs": self._logprobs(chances), "finish_reason": finish}

    def delta(self, piece: Piece, index: int) -> dict[str, Any]:
        """See `Shape`."""
        return self.choice(index, piece.text, piece.chances, piece.finish)

    def first(self, _index: int) -> None:
        """See `Shape`."""
        return

    def _logprobs(self, chances: Sequence[Chance]) -> dict[str, Any] | None:
        if not self.curious:
            return None
        offsets = [sum(len(before.token) for before in chances[:number]) for number in range(len(chances))]
        return {
            "tokens": [chance.token for chance in chances],
            "token_logprobs": [chance.logprob for chance in chances],
            "top_logprobs": [{other.token: other.logprob for other in chance.top} for chance in chances],
            "text_offset": offsets,
        }


def _of_chat(chance: Chance) -> dict[str, Any]:
    top = [{"token": each.token, "bytes": list(each.bytes), "logprob": each.logprob} for each in chance.top]
    return {"token": chance.token, "bytes": list(chance.bytes), "logprob": chance.logprob, "top_logprobs": top}


def _event(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value, separators=(',', ':'))}\n\n".encode()
