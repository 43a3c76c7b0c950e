# SPDX-License-Identifier: Apache-2.0
"""Files: all of them, and one of them with what the screen finds in it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from moored.service import files
from moored.service.blobs import Incoming
from moored.service.console import paper
from moored.service.console.visitor import Given, Here, Page, Visitor, Who, check_token, go, must_be_own, reach
from moored.service.database import File, Project
from moored.service.form import Form, read_form
from moored.service.parts import Parts
from moored.service.policy import Limits
from moored.service.previews import lines_of, screening_of
from moored.service.problems import ApiProblem

router = APIRouter(route_class=Page)

FileId = Annotated[str, Path(max_length=64)]

SHOWN = 50
"""Files, or findings, of one page."""


@router.get("/files")
def listing(request: Request, here: Here, who: Who, after: str | None = None) -> Response:
    """The files of the project, newest first, and the form for a new one."""
    with here.database.looking() as connection:
        mine = files.seen_by(who.caller.project_id)
        listed = files.LISTED.page(connection, mine, shown=files.shown, after=after, limit=SHOWN)
    return paper.page(
        "files",
        visitor=who,
        files=listed["data"],
        listed=listed,
        limits=here.limits(who.caller.project_id),
        said=paper.said(request.query_params),
    )


@router.post("/files")
async def upload(request: Request, here: Here, who: Who) -> Response:
    """Upload a file."""
    must_be_own(request)
    limits = await run_in_threadpool(here.limits, who.caller.project_id)
    with here.blobs.incoming(limits.file_bytes) as coming:
        form = await read_form(request, "file", coming, limit=limits.file_bytes)
        check_token(here, request, form.fields)
        made = await run_in_threadpool(_add, here, who, limits, coming, form)
    return go(f"/files/{made.id}", "uploaded")


@router.get("/files/{file_id}")
def one(
    file_id: FileId, request: Request, here: Here, who: Who, start: Annotated[int, Query(alias="from", ge=0)] = 0
) -> Response:
    """One file, and what the screen finds in it."""
    with here.database.reading() as session:
        file = files.find(session, reach(session, who, File, file_id), file_id)
        project = session.scalar(select(Project.name).where(Project.id == file.project_id))
    found: dict[str, Any] | None = None
    found_by, why_not = None, ""
    policy = here.policy()
    if file.purpose == "fine-tune":
        try:
            found, found_by = screening_of(here, file, policy)
        except ApiProblem as problem:
            why_not = problem.message
    findings = found["findings"][start : start + SHOWN] if found else []
    return paper.page(
        "file",
        visitor=who,
        file=file,
        mine=file.project_id == who.caller.project_id,
        project=project if who.admin else "",
        found=found,
        found_by=found_by,
        why_not=why_not,
        findings=findings,
        rows=lines_of(here.blobs, file, {each["row"] for each in findings}),
        more=start + SHOWN if found and len(found["findings"]) > start + SHOWN else 0,
        judged=policy.screen.judge is not None,
        said=paper.said(request.query_params),
    )


@router.get("/files/{file_id}/content")
def content(file_id: FileId, here: Here, who: Who) -> Response:
    """The bytes of a file."""
    with here.database.reading() as session:
        file = files.find(session, reach(session, who, File, file_id), file_id)
    return files.download(here.blobs, file)


@router.post("/files/{file_id}/delete")
def delete(file_id: FileId, here: Here, who: Who, given: Given) -> Response:
    """Delete a file."""
    files.remove(here.database, here.blobs, who.caller.project_id, file_id)
    return go("/files", "file-deleted")


def _add(here: Parts, who: Visitor, limits: Limits, coming: Incoming, form: Form) -> File:
    fields = {name: value for name, value in form.fields.items() if name != "token"}
    return files.take(
        here.database, coming, project_id=who.caller.project_id, filename=form.filename, fields=fields, limits=limits
    )
