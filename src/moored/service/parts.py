# SPDX-License-Identifier: Apache-2.0
"""What a route may use: the parts of the server, and who is calling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from moored.service.database import Database
from moored.service.identity import Caller, whose
from moored.service.policy import Limits, Policy
from moored.service.problems import ApiProblem
from moored.service.question import Engine
from moored.service.registry import Registry
from moored.service.settings import ServerSettings

_bearer = HTTPBearer(auto_error=False)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of one server, kept at `app.state.parts`.

    Args:
        settings: where things are.
        database: the tables.
        policy: gives the policy as it is now.
        registry: from names to weights.
        engine: answers from weights.
        rates: how fast each key asks.
    """

    settings: ServerSettings
    database: Database
    policy: Callable[[], Policy]
    registry: Registry
    engine: Engine
    rates: Any

    def limits(self, project_id: str) -> Limits:
        """What a project may use."""
        return self.policy().limits


def parts(request: Request) -> Parts:
    """The parts of the server that a request reached."""
    found: Parts = request.app.state.parts
    return found


def caller(
    here: Annotated[Parts, Depends(parts)],
    given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Caller:
    """Who is calling.

    Raises:
        ApiProblem: 401.
    """
    found = whose(here.database, given.credentials) if given is not None else None
    if found is None:
        raise ApiProblem(401, "Incorrect API key provided.", code="invalid_api_key")
    return found
