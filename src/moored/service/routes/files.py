# SPDX-License-Identifier: Apache-2.0
"""`/v1/files`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import FileResponse
from starlette.concurrency import run_in_threadpool

from moored.service import files
from moored.service.blobs import Incoming
from moored.service.database import File
from moored.service.form import Form, read_form
from moored.service.identity import Caller
from moored.service.pages import Order, page
from moored.service.parts import Here, Parts, Who
from moored.service.policy import Limits

router = APIRouter(prefix="/v1/files", tags=["files"])

FileId = Annotated[str, Path(description="id of a file")]

_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": list(files.PURPOSES)},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {
                            "type": "integer",
                            "minimum": files.SHORTEST_LIFE,
                            "maximum": files.LONGEST_LIFE,
                        },
                    },
                }
            }
        },
    }
}


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
    query = files.of_project(who.project_id)
    if purpose is not None:
        query = query.where(File.purpose == purpose)
    with here.database.reading() as session:
        return page(
            session,
            query,
            by=(File.created_at, File.id),
            identity=File.id,
            shown=files.shown,
            after=after,
            limit=limit,
            order=order,
        )


@router.get("/{file_id}")
def retrieve(file_id: FileId, here: Here, who: Who) -> dict[str, Any]:
    """Retrieve a file."""
    with here.database.reading() as session:
        return files.shown(files.find(session, who.project_id, file_id))


@router.get(
    "/{file_id}/content",
    response_class=FileResponse,
    responses={200: {"content": {"application/octet-stream": {}}, "description": "the bytes"}},
)
def content(file_id: FileId, here: Here, who: Who) -> FileResponse:
    """The bytes of a file."""
    with here.database.reading() as session:
        file = files.find(session, who.project_id, file_id)
    return files.download(here.blobs, file)


@router.delete("/{file_id}")
def delete(file_id: FileId, here: Here, who: Who) -> dict[str, Any]:
    """Delete a file."""
    files.remove(here.database, here.blobs, who.project_id, file_id)
    return {"id": file_id, "object": "file", "deleted": True}
