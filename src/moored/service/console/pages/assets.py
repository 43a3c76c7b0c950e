# SPDX-License-Identifier: Apache-2.0
"""What pages are shown with: one stylesheet, one script, one picture."""

from __future__ import annotations

from fastapi import APIRouter, Response

from moored.service.console import paper
from moored.service.console.visitor import Page

router = APIRouter(route_class=Page)

_HEADERS = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}


@router.get("/console.css")
def style() -> Response:
    """The rules of all pages."""
    return Response(paper.stylesheet(), media_type="text/css", headers=_HEADERS)


@router.get("/console.js")
def script() -> Response:
    """Follows jobs that are not over."""
    return Response(paper.static("console.js"), media_type="text/javascript", headers=_HEADERS)


@router.get("/console.svg")
def picture() -> Response:
    """An anchor."""
    return Response(paper.static("console.svg"), media_type="image/svg+xml", headers=_HEADERS)
