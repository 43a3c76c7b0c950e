# SPDX-License-Identifier: Apache-2.0
"""A multipart form with one file, which goes to the disk while it arrives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request

from moored.service import exchange
from moored.service.blobs import Incoming, TooLarge
from moored.service.problems import ApiProblem, wrong

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MOST_PARTS, MOST_HEADERS, FIELD_BYTES = 16, 8, 8 << 10
"""Fields of a form, headers of a field, bytes of either."""

_AT_ONCE = 1 << 20
_NOT_A_FORM = "We could not parse your request as multipart/form-data."


BYTES = {"type": "string", "format": "binary"}
"""A field that holds a file, for `described`."""


@dataclass
class Form:
    """What a form held besides the bytes of its file.

    Args:
        fields: text by name.
        filename: as the client wrote it; None if there was no file.
    """

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None


def described(fields: Mapping[str, Any], *, required: Sequence[str]) -> dict[str, Any]:
    """What the route of a form says of its body in the description of the API.

    Args:
        fields: JSON schemas by name.
        required: those that a form must have.
    """
    schema = {"type": "object", "required": list(required), "properties": dict(fields)}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


async def read_form(request: Request, file: str, into: Incoming, *, limit: int) -> Form:
    """Read a form; its file goes `into` the store.

    Args:
        request: whose body nobody has read.
        file: name of the field that holds the file.
        into: where its bytes go.
        limit: most bytes of the file.

    Raises:
        ApiProblem: 400, no such form, or one field too many, too long, or twice; 413, the file is too large.
    """
    exchange.of(request).most_bytes = limit + MOST_PARTS * (MOST_HEADERS + 1) * FIELD_BYTES
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or not 0 < len(options.get(b"boundary", b"")) <= 256:
        raise wrong(f"{_NOT_A_FORM} Send a form with the file in `{file}`.")
    reading = _Reading(file)
    parser = MultipartParser(
        options[b"boundary"],
        reading.callbacks(),
        max_header_count=MOST_HEADERS,
        max_header_size=FIELD_BYTES,
    )
    try:
        async for chunk in request.stream():
            parser.write(chunk)
            if len(reading.waiting) >= _AT_ONCE:
                await run_in_threadpool(into.write, reading.take())
        parser.finalize()
        await run_in_threadpool(into.write, reading.take())
    except FormParserError as error:
        raise wrong(_NOT_A_FORM) from error
    except TooLarge as error:
        raise _too_large(file, limit) from error
    except HTTPException as error:
        raise (_too_large(file, limit) if error.status_code == 413 else error) from error
    if not reading.complete:
        raise wrong(f"{_NOT_A_FORM} It ends too early.")
    return reading.form


def _too_large(file: str, limit: int) -> ApiProblem:
    return ApiProblem(413, f"The file is too large: at most {limit:,} bytes are taken here.", file)


class _Reading:
    """What the parser has said so far."""

    def __init__(self, file: str):
        self.form = Form()
        self.waiting = bytearray()
        self.complete = False
        self._file = file
        self._parts = 0
        self._header = (bytearray(), bytearray())
        self._disposition = b""
        self._name = ""
        self._text = bytearray()
        self._in_file = False

    def callbacks(self) -> MultipartCallbacks:
        """By the names that the parser has for them."""
        return {
            "on_part_begin": self.part_begin,
            "on_part_data": self.part_data,
            "on_part_end": self.part_end,
            "on_header_field": self.header_field,
            "on_header_value": self.header_value,
            "on_header_end": self.header_end,
            "on_headers_finished": self.headers_finished,
            "on_end": self.end,
        }

    def take(self) -> bytes:
        """The bytes of the file that are not stored yet."""
        taken = bytes(self.waiting)
        self.waiting.clear()
        return taken

    def part_begin(self) -> None:
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise wrong(f"The form has more than {MOST_PARTS} fields.")
        self._text, self._disposition = bytearray(), b""

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def header_end(self) -> None:
        if self._header[0].lower() == b"content-disposition":
            self._disposition = bytes(self._header[1])
        self._header = (bytearray(), bytearray())

    def headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = _text(options.get(b"name", b""), "the name of a field")
        if not self._name:
            raise wrong("A field of the form has no name.")
        if self._name in self.form.fields or (self._name == self._file and self.form.filename is not None):
            raise wrong(f"`{self._name}` is given twice.", self._name)
        self._in_file = self._name == self._file
        if self._in_file and b"filename" not in options:
            raise wrong(f"Expected a file in `{self._file}`, but got text instead.", self._file)
        if self._in_file:
            self.form.filename = _text(options[b"filename"], "the file's name")

    def part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self.waiting += data[start:end]
        else:
            self._text += data[start:end]
            if len(self._text) > FIELD_BYTES:
                raise wrong(f"`{self._name}` is longer than {FIELD_BYTES:,} bytes.", self._name)

    def part_end(self) -> None:
        if not self._in_file:
            self.form.fields[self._name] = _text(self._text, f"`{self._name}`")

    def end(self) -> None:
        self.complete = True


def _text(data: bytes | bytearray, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise wrong(f"{what[0].upper()}{what[1:]} is not UTF-8.") from error
