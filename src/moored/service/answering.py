# SPDX-License-Identifier: Apache-2.0
"""Every refusal and failure in the shape that the client reads."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DataError as DatabaseDataError
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as NoConnection
from starlette.exceptions import HTTPException
from starlette.responses import Response

from moored.errors import ConfigError, DataError, MooredError
from moored.service import exchange
from moored.service.problems import ApiProblem, wrong

log = logging.getLogger("moored.service")

_KINDS = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    type(None): "null",
}
_WANTED = {
    "string": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "a boolean",
    "list": "an array",
    "dict": "an object",
    "model": "an object",
    "model_attributes": "an object",
}
_NOT_JSON = (
    "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your HTTP library "
    "correctly. The API expects a JSON payload, but what was sent was not valid JSON.)"
)


def add_handlers(app: FastAPI) -> None:
    """Turn what is raised while a request is served into answers."""

    async def handler(request: Request, error: Exception) -> Response:
        return answer(problem_of(request, error))

    for kind in _PROBLEMS:
        app.add_exception_handler(kind, handler)


def problem_of(request: Request, error: Exception) -> ApiProblem:
    """What is said of something that was raised while a request was served.

    Args:
        request: that was served.
        error: that was raised.

    Raises:
        Exception: the error itself, if nobody foresaw it.
    """
    for kind in type(error).__mro__:
        if kind in _PROBLEMS:
            return _PROBLEMS[kind](request, error)
    raise error


def answer(problem: ApiProblem) -> Response:
    """A problem, as it is sent. ASCII only: a lone surrogate in an echoed name could not be encoded otherwise."""
    return Response(
        json.dumps(problem.body()), problem.status, headers=dict(problem.headers), media_type="application/json"
    )


def problem_of_validation(errors: Any) -> ApiProblem:
    """The first thing that is wrong with a request, in the words that users of the API know.

    Args:
        errors: of pydantic; `loc` begins with "body", "query", "path" or "header".
    """
    first: Mapping[str, Any] = errors[0]
    kind, param = first["type"], _spelled(first["loc"][1:])
    if kind == "json_invalid":
        return wrong(_NOT_JSON)
    if kind == "missing":
        if not param:
            return wrong("The request needs a JSON body, with `Content-Type: application/json`.")
        return wrong(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")
    if kind == "extra_forbidden":
        return wrong(f"Unknown parameter: '{param}'.", param, "unknown_parameter")
    wanted = _WANTED.get(kind.removesuffix("_type").removesuffix("_parsing"))
    if wanted and not param:
        return wrong(f"The body of the request must be {wanted}; send JSON, with `Content-Type: application/json`.")
    if wanted:
        given = _KINDS.get(type(first.get("input")), "something else")
        return wrong(f"Invalid type for '{param}': expected {wanted}, but got {given} instead.", param, "invalid_type")
    said = str(first["msg"]).removeprefix("Value error, ")
    return wrong(f"Invalid value for '{param}': {said}.".replace("..", "."), param or None, "invalid_value")


def _spelled(loc: Any) -> str:
    """`messages[0].role`."""
    text = ""
    for step in loc:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text


def _of_http(request: Request, error: HTTPException) -> ApiProblem:
    said = str(error.detail)
    if error.status_code == 404 and said == "Not Found":
        said = f"Invalid URL ({request.method} {request.url.path})"
    elif error.status_code == 405:
        said = f"Not allowed to {request.method} on {request.url.path}."
    elif error.status_code == 400 and isinstance(error.__cause__, RecursionError):
        said = "The JSON body of your request is nested too deeply."
    elif error.status_code == 400 and said == "There was an error parsing the body":
        said = _NOT_JSON
    return ApiProblem(error.status_code, said, headers=error.headers or {})


def _of_moored(request: Request, error: MooredError) -> ApiProblem:
    home = str(request.app.state.parts.settings.home)
    return wrong(str(error).replace(home, "<home>"))


def _of_database(request: Request, error: Exception) -> ApiProblem:
    request_id = exchange.of(request).id
    log.error("%s: the database: %s", request_id, error)
    return ApiProblem(
        503,
        f"The server's database does not answer (request ID {request_id}); try again.",
        headers={"retry-after": "2"},
    )


def _of_system(request: Request, error: OSError) -> ApiProblem:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        raise error
    log.error("%s: the disk is full", exchange.of(request).id)
    return ApiProblem(507, "The server's disk is full; tell its operator.", headers={"x-should-retry": "false"})


_PROBLEMS: dict[type[Exception], Callable[[Request, Any], ApiProblem]] = {
    ApiProblem: lambda _, error: error,
    HTTPException: _of_http,
    RequestValidationError: lambda _, error: problem_of_validation(error.errors()),
    ConfigError: _of_moored,
    DataError: _of_moored,
    RecursionError: lambda _, error: wrong("The request is nested too deeply."),
    UnicodeEncodeError: lambda _, error: wrong("The request holds a character that cannot be stored."),
    OverflowError: lambda _, error: wrong("A number in the request is out of range."),
    DatabaseDataError: lambda _, error: wrong("A value in the request cannot be stored."),
    OperationalError: _of_database,
    NoConnection: _of_database,
    OSError: _of_system,
}
FORESEEN = tuple(_PROBLEMS)
"""What `problem_of` has words for."""
