# SPDX-License-Identifier: Apache-2.0
"""`/v1/files`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import FileResponse
from starlette.concurrency import run_in_threadpool

from moored.service import files
from moored.service.blobs import Incoming
from moored.service.form import BYTES, Form, described, read_form
from moored.service.identity import Caller
from moored.service.pages import Order
from moored.service.parts import Here, Parts, Who
from moored.service.policy import Limits
from moored.service.routing import Route

router = APIRouter(prefix="/v1/files", tags=["files"], route_class=Route)

FileId = Annotated[str, Path(description="id of a file")]

_FORM = described(
    {
        "file": BYTES,
        "purpose": {"type": "string", "enum": list(files.PURPOSES)},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": files.SHORTEST_LIFE, "maximum": files.LONGEST_LIFE},
    },
    required=["file", "purpose"],
)


@router.post("", openapi_extra=_FORM)
async def create(request: Request, here: Here, who: Who) -> dict[str, Any]:
    """Upload a file."""
    limits = await run_in_threadpool(here.limits, who.project_id)
    with here.blobs.incoming(limits.file_bytes) as coming:
        form = await read_form(request, "file", coming, limit=limits.file_bytes)
        return await run_in_threadpool(_add, here, who, limits, coming, form)


def _add(here: Parts, who: Caller, limits: Limits, coming: Incoming, form: Form) -> dict[str, Any]:
    file = files.take(
        here.database,
        coming,
        project_id=who.project_id,
        filename=form.filename,
        fields=form.fields,
        limits=limits,
    )
    return files.shown(file)


@router.get("")
def listing(
    here: Here,
    who: Who,
    purpose: Annotated[str | None, Query(description="only files for this")] = None,
    after: Annotated[str | None, Query(description="id of the last file that the client has")] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Annotated[Order, Query(description="by time")] = "desc",
) -> dict[str, Any]:
    """List files."""
    mine = files.seen_by(who.project_id)
    listing, asked = (files.LISTED, mine) if purpose is None else (files.FOR_PURPOSE, {**mine, "purpose": purpose})
    with here.database.looking() as connection:
        return listing.page(connection, asked, shown=files.shown, after=after, limit=limit, order=order)


@router.get("/{file_id}")
def retrieve(file_id: FileId, here: Here, who: Who) -> dict[str, Any]:
    """Retrieve a file."""
    with here.database.looking() as connection:
        return files.shown(files.look(connection, who.project_id, file_id))


@router.get(
    "/{file_id}/content",
    response_class=FileResponse,
    responses={200: {"content": {"application/octet-stream": {}}, "description": "the bytes"}},
)
def content(file_id: FileId, here: Here, who: Who) -> FileResponse:
    """The bytes of a file."""
    with here.database.looking() as connection:
        file = files.look(connection, who.project_id, file_id)
    return files.download(here.blobs, file)


@router.delete("/{file_id}")
def delete(file_id: FileId, here: Here, who: Who) -> dict[str, Any]:
    """Delete a file."""
    files.remove(here.database, here.blobs, who.project_id, file_id)
    return {"id": file_id, "object": "file", "deleted": True}
