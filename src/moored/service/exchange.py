# SPDX-License-Identifier: Apache-2.0
"""One request and its answer: an id, the time it took, a limit on the body, and never a traceback."""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moored.service.metrics import Metrics
from moored.service.problems import ApiProblem

JSON_BYTES = 4 << 20
"""Longest body of a request [bytes], unless its route says otherwise before it reads."""

DRAINED_BYTES, DRAINED_S = 8 << 20, 2.0
"""What is still read of a body that was refused, so that a client which is still sending gets to read why; then the
connection ends."""

log = logging.getLogger("moored.service")


@dataclass
class Exchange:
    """What belongs to one request and is no part's business.

    Args:
        id: sent as `x-request-id`, and logged with what went wrong.
        headers: added to the answer, whatever it is.
        most_bytes: longest body that is read.
        owed: what must have been worked out before the answer; see `routing.late`.
    """

    id: str
    headers: dict[str, str] = field(default_factory=dict)
    most_bytes: int = JSON_BYTES
    owed: list[Callable[[], Any]] = field(default_factory=list)


def of(request: Request) -> Exchange:
    """The exchange that a request belongs to."""
    found: Exchange = request.scope.setdefault("moored.exchange", Exchange("req_without_server"))
    return found


class Exchanges:
    """The outermost layer of the app: every request gets an `Exchange`, every failure an answer."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics):
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = Exchange(f"req_{secrets.token_hex(16)}")
        scope["moored.exchange"] = exchange
        body = _Body(scope, receive, exchange)
        answer = _Answer(send, exchange, body)
        try:
            await self.app(scope, body.receive, answer.send)
        except ClientDisconnect:
            log.info("%s: the client went away", exchange.id)
        except Exception:  # the last resort: nothing of it may reach the client
            log.exception("%s %s %s failed", exchange.id, scope["method"], _route(scope))
            if answer.status:
                raise  # half an answer is out: the connection must break, so that it is not taken for a whole one
            await answer.problem(unforeseen(exchange))
        finally:
            self.metrics.count(scope["method"], _route(scope), answer.status, answer.seconds)


class _Body:
    """The body of a request, refused as soon as it is longer than it may be."""

    def __init__(self, scope: Scope, receive: Receive, exchange: Exchange):
        self._receive = receive
        self._exchange = exchange
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "")
        self._declared = int(declared) if declared.isdigit() else 0
        self._bytes = 0
        self._waits = "expect" in headers
        self.read = not self._declared and "transfer-encoding" not in headers

    async def receive(self) -> Message:
        if max(self._declared, self._bytes) > self._exchange.most_bytes:
            raise too_large(self._exchange.most_bytes)
        message = await self._receive()
        if message["type"] == "http.request":
            self._bytes += len(message.get("body", b""))
            self.read = not message.get("more_body", False)
            if self._bytes > self._exchange.most_bytes:
                raise too_large(self._exchange.most_bytes)
        return message

    async def drain(self) -> None:
        if self._waits and not self._bytes:
            return  # the client asked first whether it should send
        left = DRAINED_BYTES
        with anyio.move_on_after(DRAINED_S):
            while left > 0 and not self.read:
                message = await self._receive()
                left -= len(message.get("body", b""))
                self.read = message["type"] != "http.request" or not message.get("more_body", False)


class _Answer:
    """What goes back, with the headers that every answer carries."""

    def __init__(self, send: Send, exchange: Exchange, body: _Body):
        self._send = send
        self._exchange = exchange
        self._body = body
        self._start = time.perf_counter()
        self.status = 0

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = {
                "x-request-id": self._exchange.id,
                "openai-processing-ms": str(round(self.seconds * 1000)),
                "x-content-type-options": "nosniff",
                **self._exchange.headers,
            }
            if not self._body.read:
                await self._body.drain()
                if not self._body.read:
                    own["connection"] = "close"
            message["headers"] = _with(message.get("headers", ()), own)
        await self._send(message)

    async def problem(self, problem: ApiProblem) -> None:
        body = json.dumps(problem.body()).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await self.send({"type": "http.response.start", "status": problem.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})


def _with(given: Iterable[tuple[bytes, bytes]], own: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Headers of an answer, of which those of the server go before its route's."""
    named = {name.lower().encode("latin-1"): value.encode("latin-1") for name, value in own.items()}
    return [*(pair for pair in given if pair[0].lower() not in named), *named.items()]


def too_large(most: int) -> HTTPException:
    """413: the body is longer than `most` bytes."""
    return HTTPException(413, f"The request is too large: at most {most:,} bytes are read here.")


def unforeseen(exchange: Exchange) -> ApiProblem:
    """500: what nobody thought of, and whose reason only the log may know."""
    return ApiProblem(
        500, f"The server had an error while processing your request (request ID {exchange.id}); its log says more."
    )


def _route(scope: Scope) -> str:
    """The path as the route spells it, so that what users write never becomes a label or a line of the log."""
    route: Any = scope.get("route")
    return getattr(route, "path", "(none)")
