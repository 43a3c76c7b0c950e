# SPDX-License-Identifier: Apache-2.0
"""Who looks at a page, and what a form of theirs says."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any
from urllib.parse import parse_qsl, quote

from fastapi import Depends, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from moored.service import exchange, quota
from moored.service.answering import FORESEEN, problem_of
from moored.service.console import paper
from moored.service.console.sessions import LIFE
from moored.service.database import File, Job
from moored.service.identity import Caller, holder
from moored.service.parts import Here, Parts
from moored.service.problems import ApiProblem, wrong
from moored.service.routing import Late, Route, late

COOKIE = "moored_console"

log = logging.getLogger("moored.service")

FORM_BYTES, FORM_FIELDS = 64 << 10, 64

_TITLES = {
    400: "That does not work",
    401: "Sign in first",
    403: "Not with this key",
    404: "Not found",
    413: "Too large",
    429: "Too much at once",
    500: "The server had an error",
    503: "Not now",
    507: "The disk is full",
}


class SignedOut(Exception):
    """Nobody is signed in."""


@dataclass(frozen=True, kw_only=True)
class Visitor:
    """Who looks at a page.

    Args:
        caller: as the API knows them.
        project: the name of their project.
        key: the first and last letters of their key.
        token: that the page's forms carry.
    """

    caller: Caller
    project: str
    key: str
    token: str

    @property
    def rules(self) -> bool:
        """Whether they may approve and override."""
        return self.caller.role in ("operator", "admin")

    @property
    def admin(self) -> bool:
        """Whether they may make keys, and look into every project."""
        return self.caller.role == "admin"


def reach(session: Session, who: Visitor, table: type[Job] | type[File], id: str) -> str:
    """The id of the project in which somebody finds a thing: their own, and for an admin the one that has it.

    Args:
        session: where.
        who: looks.
        table: of the thing.
        id: of the thing.
    """
    owner = session.scalar(select(table.project_id).where(table.id == id)) if who.admin else None
    return owner or who.caller.project_id


def cookie_of(request: Request) -> str:
    """The console's cookie, "" if there is none."""
    return request.cookies.get(COOKIE, "")


async def visitor(request: Request, here: Here) -> Late[Visitor]:
    """Who looks, for a `Page`."""
    return late(request, partial(_seen, request, here))


def _seen(request: Request, here: Parts) -> Visitor:
    """Who looks; counts the page against their key's rate.

    Raises:
        SignedOut: nobody is signed in, or the key was revoked.
        ApiProblem: 429.
    """
    cookie = cookie_of(request)
    key_id = here.sessions.key_of(cookie)
    found = holder(here.database, key_id) if key_id else None
    if found is None:
        here.sessions.end(cookie)
        raise SignedOut
    caller, project, key = found
    here.rates.request(caller.key_id, quota.limits_with(here.policy().limits, project.limits, project.id))
    return Visitor(caller=caller, project=project.name, key=key.shown, token=here.sessions.token(cookie))


Who = Annotated[Visitor, Depends(visitor)]


async def posted(request: Request, here: Here) -> Mapping[str, str]:
    """The fields of a form that a page of this visitor sent.

    Raises:
        ApiProblem: 400, it is no such form.
    """
    exchange.of(request).most_bytes = FORM_BYTES
    must_be_own(request)
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        raise wrong("This address takes forms of its own pages only.")
    try:
        fields = dict(
            parse_qsl(
                (await request.body()).decode(),
                keep_blank_values=True,
                max_num_fields=FORM_FIELDS,
                errors="strict",
            )
        )
    except ValueError as error:
        raise wrong("The form cannot be read.") from error
    check_token(here, request, fields)
    return fields


Given = Annotated[Mapping[str, str], Depends(posted)]


def must_be_own(request: Request) -> None:
    """Refuse what another site makes a browser send.

    Raises:
        ApiProblem: 400.
    """
    if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
        raise wrong("This form was sent by another site, so it was not taken.")


def check_token(here: Parts, request: Request, fields: Mapping[str, str]) -> None:
    """Refuse a form that does not come from a page of this visitor.

    Raises:
        ApiProblem: 400.
    """
    if not here.sessions.is_token(cookie_of(request), fields.get("token", "")):
        raise wrong("This form is too old, or not from a page of yours. Go back, reload the page, and try again.")


def with_cookie(answer: Response, request: Request, cookie: str) -> Response:
    """An answer that makes the browser keep a cookie; "" makes it forget.

    Args:
        answer: what is sent.
        request: whose connection says whether the cookie may travel without TLS.
        cookie: see `Sessions`.
    """
    answer.set_cookie(
        COOKIE,
        cookie,
        max_age=LIFE if cookie else 0,
        path="/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return answer


def go(path: str, done: str = "") -> RedirectResponse:
    """To another page, after something was done.

    Args:
        path: of the page.
        done: a word of `paper.SAID`.
    """
    return RedirectResponse(f"{path}?done={done}" if done else path, status_code=303)


class Page(Route):
    """A route of the console: no part of the API, and whatever goes wrong on it is a page, too."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any):
        super().__init__(path, endpoint, **{**options, "include_in_schema": False})

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, with an answer for everything that it raises."""
        inner = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await inner(request)
            except SignedOut:
                after = (
                    f"?next={quote(request.url.path)}" if request.method == "GET" and request.url.path != "/" else ""
                )
                return RedirectResponse(f"/sign-in{after}", status_code=303)
            except FORESEEN as error:
                return problem_page(_problem(request, error))
            except Exception:  # the last resort, as in `Exchanges`, but as a page
                log.exception("%s %s %s failed", exchange.of(request).id, request.method, request.scope["route"].path)
                return problem_page(exchange.unforeseen(exchange.of(request)))

        return handler


def _problem(request: Request, error: Exception) -> ApiProblem:
    try:
        return problem_of(request, error)
    except OSError:
        log.exception("%s %s %s failed", exchange.of(request).id, request.method, request.scope["route"].path)
        return exchange.unforeseen(exchange.of(request))


def problem_page(problem: ApiProblem) -> Response:
    """A problem for people."""
    title = _TITLES.get(problem.status, "That does not work")
    answer = paper.page("problem", code=problem.status, title=title, problem=problem)
    answer.headers.update(problem.headers)
    return answer
