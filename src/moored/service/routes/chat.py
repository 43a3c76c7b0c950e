# SPDX-License-Identifier: Apache-2.0
"""`/v1/chat/completions`."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from moored.service.asking import Chat
from moored.service.conversing import asked
from moored.service.parts import Here, Who
from moored.service.routing import Route
from moored.service.telling import HEADERS, ChatShape, Told

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
    if body.stream:
        usage = bool(body.stream_options and body.stream_options.include_usage)
        events = told.stream(usage=usage, chunk="chat.completion.chunk")
        return StreamingResponse(events, media_type="text/event-stream", headers=HEADERS | headers)
    return JSONResponse(await told.whole(request), headers=headers)
