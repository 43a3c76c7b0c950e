# SPDX-License-Identifier: Apache-2.0
"""`/v1/fine_tuning/jobs/{id}/card`, and the key that it is signed with: our own, beside OpenAI's surface."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path
from fastapi.responses import HTMLResponse, JSONResponse

from moored.service.cards import card_of
from moored.service.parts import Here, Who
from moored.service.routing import Route

router = APIRouter(prefix="/v1", tags=["moored"], route_class=Route)

JobId = Annotated[str, Path(description="id of a fine-tuning job")]


@router.get("/fine_tuning/jobs/{job_id}/card")
def card(job_id: JobId, here: Here, who: Who) -> JSONResponse:
    """The signed report card of a job."""
    return JSONResponse(card_of(here.database, here.settings, job_id, who))


@router.get("/fine_tuning/jobs/{job_id}/card.html", response_class=HTMLResponse)
def card_page(job_id: JobId, here: Here, who: Who) -> HTMLResponse:
    """The same for people: one page that needs nothing else."""
    from moored.service.card_page import HEADERS, page

    text = page(card_of(here.database, here.settings, job_id, who))
    return HTMLResponse(text.encode(errors="replace"), headers=HEADERS)


@router.get("/moored/signing-key")
def signing_key(here: Here) -> dict[str, Any]:
    """The public key of this server; it needs no API key."""
    from moored.service.signing import ALGORITHM, SigningKey, key_id

    public = SigningKey.of(here.settings.home).public
    return {"object": "moored.signing_key", "algorithm": ALGORITHM, "key_id": key_id(public), "public_key": public}
