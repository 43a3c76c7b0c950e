# SPDX-License-Identifier: Apache-2.0
"""What a route may use: the parts of the server, and who is calling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from moored.service.database import Database
from moored.service.identity import Caller, whose
from moored.service.policy import Policy
from moored.service.problems import ApiProblem
from moored.service.settings import ServerSettings

bearer = HTTPBearer(auto_error=False)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of one server, kept at `app.state.parts`."""

    settings: ServerSettings
    database: Database
    policy: Callable[[], Policy]


def parts(request: Request) -> Parts:
    """The parts of the server that a request reached."""
    found: Parts = request.app.state.parts
    return found


def caller(
    here: Annotated[Parts, Depends(parts)], given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
) -> Caller:
    """Who is calling, by the key in the `Authorization` header.

    Raises:
        ApiProblem: 401 without a key or with an unknown one.
    """
    found = whose(here.database, given.credentials) if given else None
    if found is None:
        raise ApiProblem(401, "Incorrect API key provided.", code="invalid_api_key")
    return found
