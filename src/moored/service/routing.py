# SPDX-License-Identifier: Apache-2.0
"""A route that does all of its work in one thread.

FastAPI takes a thread for a dependency, another for the route, and a third to look at what the route returned. Here the
route's thread works out what the dependencies left to it, and writes the answer.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import wraps
from typing import Any, Generic, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.concurrency import run_in_threadpool

from moored.service import exchange
from moored.service.problems import ApiProblem

Value = TypeVar("Value")


class Refusal(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class Refused(BaseModel):
    """Every answer that is not what was asked for."""

    error: Refusal


REFUSED: dict[int | str, dict[str, Any]] = {"4XX": {"model": Refused, "description": "what is wrong"}}
"""What every route may answer, for its description."""


@dataclass(frozen=True)
class Late(Generic[Value]):
    """What a dependency leaves to the thread that answers.

    A route that is not a `Route` gets this in place of the value, and can do nothing with it.

    Args:
        make: works the value out.
    """

    make: Callable[[], Value]


def late(request: Request, make: Callable[[], Value]) -> Late[Value]:
    """Leave a value to the thread that answers.

    Args:
        request: which is refused if `make` raises, whatever else is wrong with it.
        make: works the value out; called once.
    """
    owed = exchange.of(request).owed

    def once() -> Value:
        owed.remove(once)
        return make()

    owed.append(once)
    return Late(once)


class Json(Response):
    """Plain data as it is sent; a number that is not finite is null."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The bytes."""
        try:
            return to_json(content, inf_nan_mode="null")
        except ValueError:  # a lone surrogate, which JSON can only hold escaped
            return json.dumps(content).encode()


class Route(APIRoute):
    """A route whose caller, and whatever else is `Late`, is found in the thread that answers."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any):
        options["responses"] = {**REFUSED, **(options.get("responses") or {})}
        super().__init__(path, _in_one_thread(endpoint), **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler. Who may not call at all hears that before what else is wrong, which counts as a call, too."""
        inner = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await inner(request)
            except (RequestValidationError, ApiProblem):
                owed = exchange.of(request).owed
                while owed:
                    await run_in_threadpool(owed[0])
                raise

        return handler


def _in_one_thread(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(endpoint):

        @wraps(endpoint)
        async def awaited(**given: Any) -> Any:
            return await endpoint(**await run_in_threadpool(_made, given))

        return awaited

    @wraps(endpoint)
    def answered(**given: Any) -> Response:
        said = endpoint(**_made(given))
        return said if isinstance(said, Response) else Json(said)

    return answered


def _made(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value.make() if isinstance(value, Late) else value for name, value in given.items()}
