# SPDX-License-Identifier: Apache-2.0
"""Lines of untrusted bytes to JSON values: bounded in memory, in depth and in time, and never an exception."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

LINE_BYTES = 8 << 20
"""Longest line that is read; of a longer one nothing is kept."""
DEPTH = 64
"""Deepest nesting of a line: schemas of tools have a dozen levels, and a parser's stack has hundreds."""

_BOM = b"\xef\xbb\xbf"
# Possessive, so that a quote which is never closed is read once and not once from every quote behind it.
_BRACKET_OR_TEXT = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """Why a line is no JSON value.

    Args:
        code: a word for programs.
        message: what continues "Line 3 ".
    """

    code: str
    message: str


def read_lines(file: BinaryIO) -> Iterator[tuple[int, Any]]:
    """The value of every line, or why it has none; lines are counted from 1 and end with a line feed.

    A blank line is `Unreadable` too, unless nothing but blank lines follows.

    Args:
        file: read from where it stands to its end.
    """
    number, offset, blank = 0, 0, list[int]()
    while line := file.readline(LINE_BYTES + 1):
        number += 1
        whole = len(line)
        if whole > LINE_BYTES and not line.endswith(b"\n"):
            line, whole = b"", whole + _skipped(file)
            value: Any = Unreadable(code="line_too_long", message=f"has {whole:,} bytes; the most is {LINE_BYTES:,}")
        else:
            line = line.removeprefix(_BOM) if number == 1 else line
            value = parsed(line, offset + whole - len(line))
        if line.strip() or whole > LINE_BYTES:
            yield from ((at, Unreadable(code="blank_line", message="is blank; delete it")) for at in blank)
            blank.clear()
            yield number, value
        elif len(blank) < 100:  # blank lines are complained about one by one, but a file may be nothing else
            blank.append(number)
        offset += whole


def parsed(line: bytes, offset: int = 0) -> Any:
    """The value of one line, or why it has none.

    Args:
        line: its bytes.
        offset: where it begins in the file, for messages.
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        at = f"byte {error.start + 1} of the line (byte {offset + error.start + 1} of the file)"
        return Unreadable(code="invalid_utf8", message=f"is not UTF-8 text: {at} is 0x{line[error.start]:02x}")
    if _deeper_than(line, DEPTH):
        return Unreadable(code="too_deep", message=f"nests deeper than {DEPTH} levels")
    try:
        value = json.loads(text, parse_float=_finite, parse_constant=_no_number)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        return Unreadable(code="invalid_json", message=f"is not valid JSON: {error.msg} (column {error.colno})")
    except UnicodeEncodeError:
        return Unreadable(code="invalid_json", message="has half of a surrogate pair, which is no character")
    except ValueError as error:
        return Unreadable(code="invalid_json", message=f"is not valid JSON: {str(error).split(';')[0]}")
    return value


def _skipped(file: BinaryIO) -> int:
    """Read up to the end of the line, keeping nothing; how many bytes that was."""
    count = 0
    while piece := file.readline(1 << 20):
        count += len(piece)
        if piece.endswith(b"\n"):
            break
    return count


def _deeper_than(line: bytes, most: int) -> bool:
    if line.count(b"[") + line.count(b"{") <= most:
        return False
    depth = 0
    for found in _BRACKET_OR_TEXT.finditer(line):
        if found[0] in b"[{":
            depth += 1
            if depth > most:
                return True
        elif found[0] in b"]}":
            depth -= 1
    return False


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")
