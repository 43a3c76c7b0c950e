# SPDX-License-Identifier: Apache-2.0
"""Signing in with an API key, and out."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from moored.service.console import paper
from moored.service.console.sessions import new_cookie
from moored.service.console.visitor import Given, Here, Page, cookie_of, go, with_cookie
from moored.service.identity import whose
from moored.service.parts import Parts

router = APIRouter(route_class=Page)

TRIES = 30
"""Times that somebody may try to sign in from one address in a minute."""


@router.get("/sign-in")
def ask(request: Request, here: Here, next: Annotated[str, Query(max_length=200)] = "/") -> Response:
    """The form."""
    return _form(request, here, next, "", 200)


@router.post("/sign-in")
def sign_in(request: Request, here: Here, given: Given) -> Response:
    """Take a key, and give a cookie for it."""
    limits = here.policy().limits.model_copy(update={"requests_per_minute": TRIES})
    here.rates.request(f"sign-in from {request.client.host if request.client else 'nowhere'}", limits)
    found = whose(here.database, given.get("key", "").strip())
    after = given.get("next", "/")
    if found is None:
        return _form(request, here, after, "This is not a key of this server, or it was revoked.", 401)
    here.sessions.end(cookie_of(request))
    return with_cookie(go(_local(after)), request, here.sessions.begin(found.key_id))


@router.post("/sign-out")
def sign_out(request: Request, here: Here, given: Given) -> Response:
    """Forget who it was."""
    here.sessions.end(cookie_of(request))
    return with_cookie(go("/sign-in", "signed-out"), request, "")


def _form(request: Request, here: Parts, after: str, complaint: str, code: int) -> Response:
    """The form, with a cookie that its token goes with; it is another one when somebody is signed in."""
    cookie = cookie_of(request) or new_cookie()
    answer = paper.page(
        "sign_in",
        code=code,
        form_token=here.sessions.token(cookie),
        next=_local(after),
        complaint=complaint,
        said=paper.said(request.query_params),
    )
    return with_cookie(answer, request, cookie)


def _local(path: str) -> str:
    """A page of this server: nobody is led elsewhere by a link to the form."""
    plain = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable() and path.isascii()
    return path if plain else "/"
