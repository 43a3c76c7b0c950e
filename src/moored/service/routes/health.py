# SPDX-License-Identifier: Apache-2.0
"""For whoever watches the server: is it there, can it work, what does it count."""

from __future__ import annotations

import shutil
from ipaddress import ip_address
from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from sqlalchemy import text

from moored.service.parts import Bearer, Here, identified
from moored.service.problems import ApiProblem
from moored.service.routing import Route

router = APIRouter(tags=["health"], route_class=Route)

FREE_BYTES = 1 << 30
"""Room on the disk of the home below which the server is not ready."""

_PROXIED = ("forwarded", "x-forwarded-for", "x-real-ip", "via")


@router.get("/healthz")
def alive() -> dict[str, Any]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
def ready(here: Here) -> dict[str, Any]:
    """The server can do its work; 503 says what it lacks."""
    with here.database.reading() as session:
        session.execute(text("select 1"))
    here.policy()
    if here.policy.complaint:
        raise _not_ready("The policy's file was changed and is wrong; the policy before it still holds.")
    if shutil.disk_usage(here.settings.home).free < FREE_BYTES:
        raise _not_ready("There is less than 1 GiB of room on the server's disk.")
    return {"status": "ok", "policy": here.policy().sha256}


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}, "description": ""}})
def metrics(request: Request, here: Here, given: Bearer) -> Response:
    """For Prometheus. Needs an operator's key unless the server listens on this machine alone."""
    # A proxy on this machine makes everybody a neighbour.
    if not _loopback(here.settings.host) or any(name in request.headers for name in _PROXIED):
        identified(request, here, given).must_be("operator")
    return Response(here.metrics.text(here.database), media_type=CONTENT_TYPE_LATEST)


def _loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _not_ready(why: str) -> ApiProblem:
    return ApiProblem(503, why, headers={"x-should-retry": "false"})
