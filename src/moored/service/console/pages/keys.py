# SPDX-License-Identifier: Apache-2.0
"""Projects and keys, for admins."""

from __future__ import annotations

from typing import cast, get_args

from fastapi import APIRouter, Request, Response

from moored.service import audit_log, identity
from moored.service.console import paper
from moored.service.console.visitor import Given, Here, Page, Visitor, Who, go
from moored.service.database import Role
from moored.service.parts import Parts
from moored.service.problems import wrong

router = APIRouter(route_class=Page)


@router.get("/keys")
def listing(request: Request, here: Here, who: Who) -> Response:
    """All keys of all projects."""
    who.caller.must_be("admin")
    return _page(here, who, said=paper.said(request.query_params))


@router.post("/keys")
def create(here: Here, who: Who, given: Given) -> Response:
    """Make a key, and show it this once."""
    who.caller.must_be("admin")
    project = identity.project_named(here.database, given.get("project", ""))
    role = given.get("role", "")
    if role not in get_args(Role):
        raise wrong(f"`role` must be one of {', '.join(get_args(Role))}; got {role[:40]!r}.", "role")
    text = identity.make_key(here.database, project.id, role=cast(Role, role), name=given.get("name", "").strip())
    _log(here, who, "key.created", project.id, role)
    return _page(here, who, made=text)


@router.post("/projects")
def create_project(here: Here, who: Who, given: Given) -> Response:
    """Make a project."""
    who.caller.must_be("admin")
    made = identity.make_project(here.database, given.get("name", "").strip())
    _log(here, who, "project.created", made.id, made.name)
    return go("/keys", "project-made")


@router.post("/keys/{key_id}/revoke")
def revoke(key_id: str, here: Here, who: Who, given: Given) -> Response:
    """End a key."""
    who.caller.must_be("admin")
    ended = identity.revoke(here.database, key_id)
    _log(here, who, "key.revoked", ended.id, ended.role)
    return go("/keys", "revoked")


def _log(here: Parts, who: Visitor, action: str, subject: str, what: str) -> None:
    audit_log.append(here.settings.home, f"key:{who.caller.key_id}", action, subject, {"what": what})


def _page(here: Parts, who: Visitor, *, made: str = "", said: str = "") -> Response:
    return paper.page(
        "keys",
        visitor=who,
        keys=identity.every_key(here.database),
        projects=identity.every_project(here.database),
        roles=get_args(Role),
        made=made,
        said=said,
    )
