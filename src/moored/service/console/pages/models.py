# SPDX-License-Identifier: Apache-2.0
"""Models that the project can chat with, and a box to try one."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from moored.service.asking import Chat
from moored.service.console import paper
from moored.service.console.visitor import Given, Here, Page, Visitor, Who, go
from moored.service.conversing import asked
from moored.service.parts import Parts
from moored.service.telling import ChatShape, Told

router = APIRouter(route_class=Page)

MOST_TOKENS = 128
"""Of an answer that is tried."""


@router.get("/models")
def listing(request: Request, here: Here, who: Who, model: str = "") -> Response:
    """What can be asked now."""
    return _page(here, who, chosen=model, said=paper.said(request.query_params))


@router.post("/models/delete")
def delete(here: Here, who: Who, given: Given) -> Response:
    """Take a tuned model away for good."""
    here.registry.delete(given.get("model", ""), who.caller)
    return go("/models", "model-deleted")


@router.post("/models/ask")
async def ask(request: Request, here: Here, who: Who, given: Given) -> Response:
    """Ask a model one thing, as `/v1/chat/completions` would be asked."""
    from starlette.concurrency import run_in_threadpool

    most = min(MOST_TOKENS, (await run_in_threadpool(here.limits, who.caller.project_id)).answer_tokens)
    name, prompt = given.get("model", ""), given.get("prompt", "")
    turns = [{"role": "user", "content": prompt}]
    body = Chat.model_validate({"model": name, "messages": turns, "max_tokens": most, "temperature": 0})
    answerings, _ = await asked(here, who.caller, name, lambda longest: [body.question(longest)])
    told = Told(
        shape=ChatShape(curious=False),
        model=name,
        kind="chat.completion",
        prefix="chatcmpl",
        answerings=answerings,
        n=1,
    )
    answer = (await told.whole(request))["choices"][0]["message"]["content"]
    return await run_in_threadpool(_page, here, who, chosen=name, prompt=prompt, answer=answer, most=most)


def _page(
    here: Parts,
    who: Visitor,
    *,
    chosen: str,
    prompt: str = "",
    answer: str | None = None,
    most: int = 0,
    said: str = "",
) -> Response:
    models = here.registry.names(who.caller)
    return paper.page(
        "models", visitor=who, models=models, chosen=chosen, prompt=prompt, answer=answer, most=most, said=said
    )
