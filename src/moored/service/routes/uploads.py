# SPDX-License-Identifier: Apache-2.0
"""`/v1/uploads`: large files in parts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from moored.service import files, uploads
from moored.service.blobs import Incoming
from moored.service.database import Part
from moored.service.form import BYTES, described, read_form
from moored.service.identity import Caller
from moored.service.parts import Here, Parts, Who
from moored.service.problems import wrong
from moored.service.routing import Route

router = APIRouter(prefix="/v1/uploads", tags=["uploads"], route_class=Route)

UploadId = Annotated[str, Path(description="id of an upload")]

_PART = described({"data": BYTES}, required=["data"])


class ExpiresAfter(BaseModel):
    """When the file will be gone."""

    model_config = ConfigDict(extra="forbid", strict=True)
    anchor: Literal["created_at"]
    seconds: int = Field(ge=files.SHORTEST_LIFE, le=files.LONGEST_LIFE)


class NewUpload(BaseModel):
    """What the file will be."""

    model_config = ConfigDict(extra="forbid", strict=True)
    filename: str
    purpose: str
    bytes: int = Field(ge=1, le=1 << 62)
    mime_type: str = Field(max_length=128)
    expires_after: ExpiresAfter | None = None


class Completion(BaseModel):
    """The parts in order."""

    model_config = ConfigDict(extra="forbid", strict=True)
    part_ids: list[str] = Field(max_length=uploads.MOST_PARTS)
    md5: str | None = Field(default=None, max_length=64)


@router.post("")
def create(given: NewUpload, here: Here, who: Who) -> dict[str, Any]:
    """Announce a large file."""
    upload = uploads.begin(
        here.database,
        project_id=who.project_id,
        filename=files.checked_name(given.filename, "filename"),
        purpose=files.checked_purpose(given.purpose),
        size=given.bytes,
        mime_type=given.mime_type,
        limits=here.limits(who.project_id),
        lifetime=given.expires_after.seconds if given.expires_after else None,
    )
    return uploads.shown(upload)


@router.post("/{upload_id}/parts", openapi_extra=_PART)
async def add_part(upload_id: UploadId, request: Request, here: Here, who: Who) -> dict[str, Any]:
    """Send one part."""
    await run_in_threadpool(_must_be_open, here, who, upload_id)
    with here.blobs.incoming(uploads.PART_BYTES) as coming:
        form = await read_form(request, "data", coming, limit=uploads.PART_BYTES)
        if form.filename is None:
            raise wrong("Missing required parameter: 'data'.", "data", "missing_required_parameter")
        return uploads.part_shown(await run_in_threadpool(_add, here, who, upload_id, coming))


def _must_be_open(here: Parts, who: Caller, upload_id: str) -> None:
    with here.database.reading() as session:
        uploads.open_upload(session, who.project_id, upload_id)


def _add(here: Parts, who: Caller, upload_id: str, coming: Incoming) -> Part:
    return uploads.add_part(here.database, coming, project_id=who.project_id, upload_id=upload_id)


@router.post("/{upload_id}/complete")
def complete(upload_id: UploadId, given: Completion, here: Here, who: Who) -> dict[str, Any]:
    """Make a file of the parts."""
    upload, file = uploads.complete(
        here.database,
        here.blobs,
        project_id=who.project_id,
        upload_id=upload_id,
        part_ids=given.part_ids,
        md5=given.md5,
        limits=here.limits(who.project_id),
    )
    return uploads.shown(upload, file)


@router.post("/{upload_id}/cancel")
def cancel(upload_id: UploadId, here: Here, who: Who) -> dict[str, Any]:
    """Give an upload up."""
    return uploads.shown(uploads.cancel(here.database, here.blobs, project_id=who.project_id, upload_id=upload_id))
