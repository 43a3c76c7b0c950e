# SPDX-License-Identifier: Apache-2.0
"""Large files that come in parts."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from moored.service import files, quota
from moored.service.blobs import Blobs, Incoming
from moored.service.clock import now
from moored.service.database import Database, File, Part, Upload
from moored.service.ids import new_id
from moored.service.policy import Limits
from moored.service.problems import ApiProblem, wrong

LIFETIME = 3600
"""After which an upload that was not completed is gone [s]."""

PART_BYTES = 64 << 20
"""Largest part [bytes]."""

MOST_PARTS = 10_000

_AT_ONCE = 1 << 20


def begin(
    database: Database,
    *,
    project_id: str,
    filename: str,
    purpose: str,
    size: int,
    mime_type: str,
    limits: Limits,
    lifetime: int | None,
) -> Upload:
    """Announce a file; its room is kept free from now on.

    Args:
        database: where.
        project_id: whose it is.
        filename: what the file will be called.
        purpose: what it will be for.
        size: of the whole file [bytes].
        mime_type: what the client says it is; kept, not used.
        limits: of the project.
        lifetime: of the file [s]; None keeps it.

    Raises:
        ApiProblem: 400, larger than an upload may be; 429, the project has no room for it.
    """
    if size > limits.upload_bytes:
        raise wrong(f"An upload may have at most {limits.upload_bytes:,} bytes; this one has {size:,}.", "bytes")
    with database.writing() as session:
        quota.room_for(session, limits, project_id, size)
        upload = Upload(
            id=new_id("upload"),
            project_id=project_id,
            filename=filename,
            purpose=purpose,
            bytes=size,
            mime_type=mime_type,
            created_at=now(),
            expires_at=now() + LIFETIME,
            status="pending",
            file_expires_after=lifetime,
        )
        session.add(upload)
    return upload


def open_upload(session: Session, project_id: str, upload_id: str) -> Upload:
    """An upload that is still going on.

    Raises:
        ApiProblem: 404, there is none; 400, it is over.
    """
    found = select(Upload).where(Upload.project_id == project_id, Upload.id == upload_id)
    upload = session.scalar(found.with_for_update())
    if upload is None:
        raise ApiProblem(404, f"No such Upload object: {upload_id}", "upload_id")
    status = "expired" if upload.status == "pending" and upload.expires_at <= now() else upload.status
    if status != "pending":
        file = f"; its file is {upload.file_id}" if upload.file_id else ""
        raise wrong(f"Upload {upload_id} is {status}{file}.", "upload_id", f"upload_{status}")
    return upload


def add_part(database: Database, coming: Incoming, *, project_id: str, upload_id: str) -> Part:
    """Add a part.

    Args:
        database: where its row goes.
        coming: its bytes.
        project_id: whose upload it is.
        upload_id: the upload.

    Raises:
        ApiProblem: 404, no such upload; 400, it is over, or there would be more bytes or parts than it may have.
    """
    coming.settle()
    with database.writing() as session:
        upload = open_upload(session, project_id, upload_id)
        of_upload = select(func.count(), func.sum(Part.bytes)).where(Part.upload_id == upload_id)
        count, size = session.execute(of_upload).one()
        if int(size or 0) + coming.size > upload.bytes:
            raise wrong(
                f"The parts of this upload would have more than the {upload.bytes:,} bytes it announced.", "data"
            )
        if count >= MOST_PARTS:
            raise wrong(f"An upload may have at most {MOST_PARTS} parts.", "data")
        if coming.size == 0:
            raise wrong("The part is empty.", "data")
        part = Part(id=new_id("part"), upload_id=upload_id, bytes=coming.size, sha256=coming.keep(), created_at=now())
        session.add(part)
    return part


def complete(
    database: Database,
    blobs: Blobs,
    *,
    project_id: str,
    upload_id: str,
    part_ids: Sequence[str],
    md5: str | None,
    limits: Limits,
) -> tuple[Upload, File]:
    """Make a file of the parts.

    Args:
        database: where its row goes.
        blobs: where the bytes are.
        project_id: whose upload it is.
        upload_id: the upload.
        part_ids: all parts in order.
        md5: of the whole file in hex; None is not checked.
        limits: of the project.

    Raises:
        ApiProblem: 404, no such upload; 400, it is over, or the parts are not the file that was announced.
    """
    with database.reading() as session:
        upload = open_upload(session, project_id, upload_id)
        parts = {part.id: part for part in session.scalars(select(Part).where(Part.upload_id == upload_id))}
    for part_id in part_ids:
        if part_id not in parts:
            raise wrong(f"No such Part object in this upload: {part_id}", "part_ids")
    if len(set(part_ids)) != len(part_ids):
        raise wrong("A part is named twice.", "part_ids")
    size = sum(parts[part_id].bytes for part_id in part_ids)
    if size != upload.bytes:
        raise wrong(f"The parts have {size:,} bytes; the upload announced {upload.bytes:,}.", "part_ids")
    with blobs.incoming(upload.bytes) as coming:
        found = _join(blobs, [parts[part_id].sha256 for part_id in part_ids], coming)
        if md5 is not None and not hmac.compare_digest(found.encode(), md5.strip().lower().encode()):
            raise wrong(f"The MD5 of the parts is {found}, not what was given.", "md5", "checksum_mismatch")
        coming.settle()
        files.check_content(coming.path, upload.filename, upload.purpose, limits)
        with database.writing() as session:
            upload = open_upload(session, project_id, upload_id)
            file = files.promise(
                session,
                coming,
                project_id=project_id,
                filename=upload.filename,
                purpose=upload.purpose,
                lifetime=upload.file_expires_after,
            )
            upload.status, upload.file_id = "completed", file.id
            gone = drop_parts(session, upload_id)
    discard(database, blobs, gone)
    return upload, file


def cancel(database: Database, blobs: Blobs, *, project_id: str, upload_id: str) -> Upload:
    """Give an upload up.

    Raises:
        ApiProblem: 404, no such upload; 400, it is over.
    """
    with database.writing() as session:
        upload = open_upload(session, project_id, upload_id)
        upload.status = "cancelled"
        gone = drop_parts(session, upload_id)
    discard(database, blobs, gone)
    return upload


def drop_parts(session: Session, upload_id: str) -> list[str]:
    """Forget the parts of an upload; returns the hashes of bytes that nothing may refer to any more."""
    parts = session.scalars(select(Part).where(Part.upload_id == upload_id)).all()
    for part in parts:
        session.delete(part)
    return [part.sha256 for part in parts]


def discard(database: Database, blobs: Blobs, gone: Sequence[str]) -> None:
    """Throw away the bytes of parts that are over, after the transaction that forgot them."""
    for sha256 in gone:
        blobs.discard(sha256, files.promised(database))


def shown(upload: Upload, file: File | None = None) -> dict[str, Any]:
    """An upload as clients see it."""
    return {
        "id": upload.id,
        "object": "upload",
        "bytes": upload.bytes,
        "created_at": upload.created_at,
        "expires_at": upload.expires_at,
        "filename": upload.filename,
        "purpose": upload.purpose,
        "status": upload.status,
        "file": None if file is None else files.shown(file),
    }


def part_shown(part: Part) -> dict[str, Any]:
    """A part as clients see it."""
    return {"id": part.id, "object": "upload.part", "created_at": part.created_at, "upload_id": part.upload_id}


def _join(blobs: Blobs, hashes: Sequence[str], into: Incoming) -> str:
    """Copy parts one after the other; returns the MD5 of all."""
    md5 = hashlib.md5(usedforsecurity=False)
    for sha256 in hashes:
        with blobs.open(sha256) as stream:
            while data := stream.read(_AT_ONCE):
                md5.update(data)
                into.write(data)
    return md5.hexdigest()
