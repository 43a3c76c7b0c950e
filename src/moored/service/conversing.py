# SPDX-License-Identifier: Apache-2.0
"""From a request for answers to the answers on their way: the model is opened, the tokens are counted, it is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from starlette.concurrency import run_in_threadpool

from moored.service.identity import Caller
from moored.service.parts import Parts
from moored.service.question import Answering, Question


async def asked(
    here: Parts, who: Caller, model: str, questions: Callable[[int], Sequence[Question]]
) -> tuple[list[Answering], dict[str, str]]:
    """Ask a model; every question is accepted when this returns.

    Args:
        here: the parts of the server.
        who: asks.
        model: by name.
        questions: what, given the longest answer that is served.

    Returns:
        One for each question; headers that say what is left of the caller's tokens.

    Raises:
        ApiProblem: the model may not answer this caller, the request is wrong, or it asks for too many tokens.
    """
    limits = await run_in_threadpool(here.limits, who.project_id)
    wanted = questions(limits.answer_tokens)
    served = await run_in_threadpool(here.registry.open, model, who)
    headers: dict[str, str] = {}

    def charge(prompt: int, most: int) -> None:
        headers.update(here.rates.tokens(who.key_id, limits, prompt + most))

    found: list[Answering] = []
    try:
        for question in wanted:
            found.append(await here.engine.ask(served, question, charge))
    except BaseException:  # cancelled, too: what was accepted before is not waited for
        for answering in found:
            answering.cancel()
        raise
    return found, headers
