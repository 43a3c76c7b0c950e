# SPDX-License-Identifier: Apache-2.0
"""`/v1/completions`."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from moored.service.asking import Completion
from moored.service.conversing import asked
from moored.service.parts import Here, Who
from moored.service.routing import Route
from moored.service.telling import CompletionShape, Told

router = APIRouter(prefix="/v1/completions", tags=["completions"], route_class=Route)


@router.post("")
async def create(
    body: Completion,
    request: Request,
    here: Here,
    who: Who,
) -> Response:
    """Go on from text or tokens as they are, without a chat template, at once or as a stream."""
    answerings, headers = await asked(here, who, body.model, body.questions)
    told = Told(
        shape=CompletionShape(curious=body.logprobs is not None),
        model=body.model,
        kind="text_completion",
        prefix="cmpl",
        answerings=answerings,
        n=body.n or 1,
        before=[str(prompt) for prompt in body.prompts()] if body.echo else (),
    )
    return await told.answer(request, body, headers)
