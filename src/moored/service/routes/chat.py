# SPDX-License-Identifier: Apache-2.0
"""`/v1/chat/completions`."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from moored.service.asking import Chat
from moored.service.conversing import asked
from moored.service.parts import Here, Who
from moored.service.routing import Route
from moored.service.telling import ChatShape, Told

router = APIRouter(prefix="/v1/chat/completions", tags=["chat"], route_class=Route)


@router.post("")
async def create(
    body: Chat,
    request: Request,
    here: Here,
    who: Who,
) -> Response:
    """Answer a chat, at once or as a stream. Tools are shown to the model; answers are text."""
    answerings, headers = await asked(here, who, body.model, lambda most: [body.question(most)])
    told = Told(
        shape=ChatShape(curious=bool(body.logprobs)),
        model=body.model,
        kind="chat.completion",
        prefix="chatcmpl",
        answerings=answerings,
        n=body.n or 1,
    )
    return await told.answer(request, body, headers)
