# SPDX-License-Identifier: Apache-2.0
"""What a route may use: the parts of the server, and who is calling."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from moored.service import exchange, quota
from moored.service.blobs import Blobs
from moored.service.console.sessions import Sessions
from moored.service.database import Database
from moored.service.identity import Caller, known
from moored.service.metrics import Metrics
from moored.service.policy import Limits
from moored.service.policy_file import PolicyFile
from moored.service.previews import Previews
from moored.service.problems import ApiProblem
from moored.service.question import Engine
from moored.service.quota import Rates
from moored.service.registry import Registry
from moored.service.routing import Late, late
from moored.service.settings import ServerSettings

bearer = HTTPBearer(auto_error=False, description="An API key of `moored keys create`.")


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of one server, kept at `app.state.parts`.

    Args:
        settings: where things are.
        database: the tables.
        policy: gives the policy as it is now; the operator may have changed the file.
        blobs: bytes of files.
        registry: from a model's name to its weights.
        engine: answers.
        rates: how fast each key asks.
        metrics: what is counted for Prometheus.
        sessions: who is signed in to the console.
        previews: what the screen found in files lately.
    """

    settings: ServerSettings
    database: Database
    policy: PolicyFile
    blobs: Blobs
    registry: Registry
    engine: Engine
    rates: Rates = field(default_factory=Rates)
    metrics: Metrics = field(default_factory=Metrics)
    sessions: Sessions = field(default_factory=Sessions)
    previews: Previews = field(default_factory=Previews)

    def limits(self, project_id: str) -> Limits:
        """What a project may use: the policy's limits, and what differs for it."""
        with self.database.reading() as session:
            return quota.limits_of(session, self.policy().limits, project_id)


async def parts(request: Request) -> Parts:
    """The parts of the server that a request reached. Async, so that no thread is asked for an attribute."""
    found: Parts = request.app.state.parts
    return found


Here = Annotated[Parts, Depends(parts)]
"""A route's parameter: the parts."""


Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]


async def caller(request: Request, here: Here, given: Bearer) -> Late[Caller]:
    """Who is calling, for a `Route`."""
    return late(request, partial(identified, request, here, given))


def identified(request: Request, here: Parts, given: HTTPAuthorizationCredentials | None) -> Caller:
    """Who is calling, by the key in the `Authorization` header; counts the request against the key's rate.

    Raises:
        ApiProblem: 401 without a key or with an unknown one; 429 when the key asks too often.
    """
    if given is None:
        raise ApiProblem(
            401,
            "You didn't provide an API key. Send it in an Authorization header: `Authorization: Bearer YOUR_KEY`.",
            headers={"WWW-Authenticate": "Bearer"},
        )
    found = known(here.database, given.credentials)
    if found is None:
        raise ApiProblem(
            401,
            "Incorrect API key provided. Ask the operator of this server for one (`moored keys create`).",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
    who, own = found
    limits = quota.limits_with(here.policy().limits, own, who.project_id)
    exchange.of(request).headers |= here.rates.request(who.key_id, limits)
    return who


Who = Annotated[Caller, Depends(caller)]
"""A route's parameter: who is calling."""
