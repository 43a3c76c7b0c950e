# SPDX-License-Identifier: Apache-2.0
"""Files of a project: what may become one, who sees it, and when it is gone."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Row, Select, bindparam, or_, select
from sqlalchemy.orm import Session
from starlette.responses import FileResponse

from moored.service import dialect, quota
from moored.service.blobs import Blobs, Incoming
from moored.service.clock import now
from moored.service.database import Database, File, Part, columns_of
from moored.service.ids import new_id
from moored.service.pages import Listing
from moored.service.policy import Limits
from moored.service.problems import missing_file, wrong

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
"""What a user may upload for; "fine-tune-results" is written by the server alone."""

FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")
"""What may stand in a form beside the file."""

SHORTEST_LIFE, LONGEST_LIFE = 3600, 2_592_000
"""Bounds of `expires_after` [s]: an hour, 30 days."""

LONGEST_NAME = 255

_UNSEEN = {"Cc", "Cs", "Zl", "Zp"}
_TURN_TEXT_AROUND = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def checked_name(given: str | None, param: str = "file") -> str:
    """The name of a file, without the folders that a client may have sent with it.

    Args:
        given: as it was sent. Nothing on the disk is ever called so.
        param: where it was sent.

    Raises:
        ApiProblem: 400, there is none, or it holds characters that cannot be seen.
    """
    name = (given or "").replace("\\", "/").rpartition("/")[2].strip(" ")
    if name in ("", ".", ".."):
        raise wrong("The file needs a name.", param)
    if len(name) > LONGEST_NAME:
        raise wrong(f"The name of the file is {len(name)} letters long; at most {LONGEST_NAME} are taken.", param)
    for letter in name:
        if unicodedata.category(letter) in _UNSEEN or unicodedata.bidirectional(letter) in _TURN_TEXT_AROUND:
            raise wrong(f"The name of the file holds the control character U+{ord(letter):04X}.", param)
    return name


def checked_purpose(given: str | None) -> str:
    """What a file is for.

    Raises:
        ApiProblem: 400, it is missing or not one of `PURPOSES`.
    """
    if given is None:
        raise wrong("Missing required parameter: 'purpose'.", "purpose", "missing_required_parameter")
    if given not in PURPOSES:
        raise wrong(f"{given!r} is not one of {list(PURPOSES)} - 'purpose'", "purpose", "invalid_value")
    return given


def checked_lifetime(anchor: str | None, seconds: str | int | None) -> int | None:
    """After which time a file is gone [s].

    Args:
        anchor: "created_at" is the only one there is.
        seconds: between `SHORTEST_LIFE` and `LONGEST_LIFE`, as text or as a number.

    Raises:
        ApiProblem: 400.
    """
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise wrong(
            f"Invalid value for 'expires_after[anchor]': expected 'created_at', but got {anchor!r}.",
            "expires_after[anchor]",
            "invalid_value",
        )
    text = str(seconds)
    if not (text.isascii() and text.isdigit() and len(text) < 10 and SHORTEST_LIFE <= int(text) <= LONGEST_LIFE):
        raise wrong(
            f"Invalid value for 'expires_after[seconds]': expected {SHORTEST_LIFE} to {LONGEST_LIFE}, "
            f"but got {text[:40]!r}.",
            "expires_after[seconds]",
            "invalid_value",
        )
    return int(text)


def check_content(path: Path, filename: str, purpose: str, limits: Limits) -> None:
    """Refuse a training file that cannot be trained on.

    Args:
        path: its bytes.
        filename: what complaints call it.
        purpose: only "fine-tune" is looked at.
        limits: of the project.

    Raises:
        ApiProblem: 400 with the first complaint.
    """
    if purpose != "fine-tune":
        return
    complaints = dialect.check(path, limits=limits, name=filename)
    if complaints:
        raise wrong(complaints[0].message, "file", complaints[0].code)


def take(
    database: Database,
    coming: Incoming,
    *,
    project_id: str,
    filename: str | None,
    fields: Mapping[str, str],
    limits: Limits,
) -> File:
    """Make a file of a form whose bytes have arrived.

    Args:
        database: where its row goes.
        coming: its bytes.
        project_id: whose it is.
        filename: as the client wrote it; None if the form had no file.
        fields: what else the form held.
        limits: of the project.

    Raises:
        ApiProblem: 400, something in the form, or in a training file, is wrong; 429, the project has no room for it.
    """
    for name in fields:
        if name not in FIELDS:
            raise wrong(f"Unknown parameter: '{name}'.", name, "unknown_parameter")
    if filename is None:
        raise wrong("Missing required parameter: 'file'.", "file", "missing_required_parameter")
    named = checked_name(filename)
    purpose, *expires = (fields.get(name) for name in FIELDS)
    checked = checked_purpose(purpose)
    lifetime = checked_lifetime(*expires)
    coming.settle()
    check_content(coming.path, named, checked, limits)
    return add(
        database,
        coming,
        project_id=project_id,
        filename=named,
        purpose=checked,
        limits=limits,
        lifetime=lifetime,
    )


def add(
    database: Database,
    coming: Incoming,
    *,
    project_id: str,
    filename: str,
    purpose: str,
    limits: Limits,
    lifetime: int | None = None,
) -> File:
    """Make a file of bytes that have arrived.

    Args:
        database: where its row goes.
        coming: its bytes, in the store of the server.
        project_id: whose it is.
        filename: what it is called.
        purpose: what it is for.
        limits: of the project.
        lifetime: after which it is gone [s]; None keeps it.

    Raises:
        ApiProblem: 429, the project has no room for it.
    """
    coming.settle()
    with database.writing() as session:
        quota.room_for(session, limits, project_id, coming.size)
        return promise(session, coming, project_id=project_id, filename=filename, purpose=purpose, lifetime=lifetime)


def promise(
    session: Session, coming: Incoming, *, project_id: str, filename: str, purpose: str, lifetime: int | None
) -> File:
    """Put the bytes of a new file in their place and add the row that promises them; see `add`."""
    created = now()
    file = File(
        id=new_id("file"),
        project_id=project_id,
        filename=filename,
        purpose=purpose,
        bytes=coming.size,
        sha256=coming.keep(),
        created_at=created,
        expires_at=None if lifetime is None else created + lifetime,
        status="processed",
    )
    session.add(file)
    return file


_MINE = File.project_id == bindparam("project_id")
_ALIVE = or_(File.expires_at.is_(None), File.expires_at > bindparam("now"))
_COLUMNS = columns_of(File)

LISTED = Listing(_COLUMNS, _MINE, _ALIVE, by=(File.created_at, File.id), identity=File.id)
"""The files that a project sees (`seen_by`), as `shown` takes them."""
FOR_PURPOSE = LISTED.only(File.purpose == bindparam("purpose"))
"""Those for a `purpose`."""

_ONE = select(*_COLUMNS).where(_MINE, _ALIVE, File.id == bindparam("file_id"))


def seen_by(project_id: str) -> dict[str, Any]:
    """What `LISTED` is asked with: a project sees its own files, and none that expired."""
    return {"project_id": project_id, "now": now()}


def look(connection: Connection, project_id: str, file_id: str) -> Row[Any]:
    """A file of a project, as `shown` takes it; see `find`."""
    file = connection.execute(_ONE, {**seen_by(project_id), "file_id": file_id}).one_or_none()
    if file is None:
        raise missing_file(file_id)
    return file


def of_project(project_id: str) -> Select[File]:
    """The files that a project sees: its own, and not expired."""
    return select(File).where(_MINE, _ALIVE).params(seen_by(project_id))


def find(session: Session, project_id: str, file_id: str) -> File:
    """A file of a project.

    Raises:
        ApiProblem: 404, there is none that the project sees.
    """
    file = session.scalar(of_project(project_id).where(File.id == file_id))
    if file is None:
        raise missing_file(file_id)
    return file


def remove(database: Database, blobs: Blobs, project_id: str, file_id: str) -> None:
    """Delete a file; its bytes go with the last file that has them.

    Raises:
        ApiProblem: 404, there is none that the project sees.
    """
    with database.writing() as session:
        file = find(session, project_id, file_id)
        session.delete(file)
    blobs.discard(file.sha256, promised(database))


def download(blobs: Blobs, file: File | Row[Any]) -> FileResponse:
    """The bytes of a file, to be kept and not to be looked at: they are a user's.

    Raises:
        ApiProblem: 404, they are not there any more.
    """
    place = blobs.path(file.sha256)
    if not place.is_file():
        raise missing_file(file.id)
    named = f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}"
    return FileResponse(place, media_type="application/octet-stream", headers={"content-disposition": named})


def promised(database: Database) -> Callable[[str], bool]:
    """Says whether some row refers to the bytes with a hash."""

    def asked(sha256: str) -> bool:
        with database.reading() as session:
            queries = (select(File.id).where(File.sha256 == sha256), select(Part.id).where(Part.sha256 == sha256))
            return any(session.scalar(query.limit(1)) is not None for query in queries)

    return asked


def shown(file: File | Row[Any]) -> dict[str, Any]:
    """A file as clients see it."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_at,
        "expires_at": file.expires_at,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": file.status,
        "status_details": file.status_details,
    }
