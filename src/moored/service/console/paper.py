# SPDX-License-Identifier: Apache-2.0
"""What every page of the console is written on: its templates, its headers, and what can be said on top of it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from typing import Any

from fastapi.responses import HTMLResponse
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from moored.report import svg

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Of every page: nothing from elsewhere, nothing inline, nothing kept."""

SAID = {
    "cancelled": "The job was asked to stop.",
    "paused": "The job was asked to pause.",
    "resumed": "The job goes on.",
    "created": "The job was created.",
    "approved": "The model was approved.",
    "refused": "The model was refused.",
    "overridden": "The model is served, against the gate. The report card says so.",
    "uploaded": "The file was uploaded.",
    "file-deleted": "The file was deleted.",
    "model-deleted": "The model was deleted.",
    "project-made": "The project was made.",
    "revoked": "The key opens nothing any more.",
    "signed-out": "You are signed out.",
}
"""What a page says of what was just done, by the word in its address: no other words can be put there."""


def page(template: str, *, code: int = 200, **shown: Any) -> HTMLResponse:
    """A page as it is sent.

    Args:
        template: in `templates/`, without its ending.
        code: of HTTP.
        shown: what it shows; all text is escaped.
    """
    text = environment().get_template(f"{template}.html.j2").render(**{"visitor": None, "said": "", **shown})
    # A lone surrogate, which JSON can hold and UTF-8 cannot, shows as a question mark.
    return HTMLResponse(text.encode(errors="replace"), status_code=code, headers=HEADERS)


@cache
def environment() -> Environment:
    """The console's templates, and those that it shares with reports."""
    made = Environment(
        loader=ChoiceLoader([PackageLoader("moored.service.console"), PackageLoader("moored.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"moment": moment, "iso": iso, "size": size, "count": count}
    return made


def stylesheet() -> str:
    """The rules of reports, of plots, and of the console."""
    return "\n".join([environment().get_template("style.css.j2").render(), svg.STYLE, static("console.css")])


def static(name: str) -> str:
    """A file that comes with the console."""
    return (resources.files("moored.service.console") / "static" / name).read_text(encoding="utf-8")


def moment(at: int, *, seconds: bool = False) -> str:
    """Seconds since 1970 as `21 Nov 2026, 10:00 UTC`, or as `21 Nov 2026, 10:00:07`."""
    return datetime.fromtimestamp(at, UTC).strftime("%-d %b %Y, %H:%M:%S" if seconds else "%-d %b %Y, %H:%M UTC")


def iso(at: int) -> str:
    """Seconds since 1970 as machines read them."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def size(given: int) -> str:
    """Bytes as `1.2 MB`."""
    value, unit = float(given), "bytes"
    for unit in ("bytes", "KB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{given:,} bytes" if unit == "bytes" else f"{value:.1f} {unit}"


def count(number: int, one: str, many: str = "") -> str:
    """`1 row`, `2 rows`.

    Args:
        number: how many.
        one: the word for one of them.
        many: the word for more; one with an s.
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def said(done: Mapping[str, str]) -> str:
    """What a page says of what was just done.

    Args:
        done: the query of its address.
    """
    return SAID.get(done.get("done", ""), "")
