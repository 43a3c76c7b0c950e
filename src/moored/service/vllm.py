# SPDX-License-Identifier: Apache-2.0
"""Answers from a vLLM server that sees the same folders.

A name says nothing about bytes, so vLLM is asked which folder its model is from, and adapters are loaded into it by
this server, from the folder that the registry has just checked. vLLM must be started with `--enable-lora` and
`VLLM_ALLOW_RUNTIME_LORA_UPDATING=True`; what it cannot show to be from the right folder is refused.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from moored.service.problems import ApiProblem, wrong
from moored.service.question import Answering, Chance, Charge, Finish, Piece, Question, turns
from moored.service.registry import Served

log = logging.getLogger("moored.service")

KEY = "VLLM_API_KEY"
"""Environment variable with vLLM's key, if it wants one."""
_LETTERS_PER_TOKEN = 3
"""About; vLLM has the tokenizer, and the caller's tokens are counted before it is asked."""
_CONNECT_S = 5.0


class VllmEngine:
    """Answers from a vLLM server.

    Args:
        url: with or without "/v1".
    """

    def __init__(self, url: str):
        self._url = url.rstrip("/").removesuffix("/v1") + "/v1"
        key = os.environ.get(KEY)
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._bound: dict[str, str] = {}
        """By the hash of a model, what vLLM calls it."""
        self._names: dict[str, set[str]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def ask(self, served: Served, question: Question, charge: Charge) -> Answering:
        """See `Engine.ask`."""
        path, body = _request(served, question)
        letters = sum(len(str(message.get("content", ""))) for message in body.get("messages", ()))
        charge((letters or len(question.prompt)) // _LETTERS_PER_TOKEN + 1, body["max_tokens"] * question.n)
        body["model"] = await self._bind(served)
        task: asyncio.Task[None]
        answering = Answering(question.n, lambda: task.cancel())
        task = asyncio.ensure_future(self._follow(path, body, answering))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await answering.begin()
        return answering

    def unload(self, name: str) -> None:
        """See `Engine.unload`."""
        for sha256 in self._names.pop(name, ()):
            self._bound.pop(sha256, None)
        threading.Thread(target=self._forget, args=(name,), daemon=True).start()

    def close(self) -> None:
        """See `Engine.close`."""
        for task in list(self._tasks):
            task.get_loop().call_soon_threadsafe(task.cancel)

    def _forget(self, name: str) -> None:
        """Give vLLM its memory back; that nobody gets to the model any more does not hang on it."""
        try:
            httpx.post(
                f"{self._url}/unload_lora_adapter", json={"lora_name": name}, headers=self._headers, timeout=_CONNECT_S
            )
        except httpx.HTTPError as error:
            log.warning("vLLM at %s did not unload %s: %s", self._url, name, error)

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(headers=self._headers, timeout=httpx.Timeout(None, connect=_CONNECT_S))

    async def _bind(self, served: Served) -> str:
        """What vLLM calls these very weights."""
        if served.sha256 in self._bound:
            return self._bound[served.sha256]
        async with self._client() as client:
            try:
                base = await self._base(client, served)
                name = base if served.adapter is None else await self._load(client, served)
            except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
                raise _down(served, f"{type(error).__name__}: {error}") from error
        served.confirm()
        self._bound[served.sha256] = name
        self._names.setdefault(served.name, set()).add(served.sha256)
        return name

    async def _base(self, client: httpx.AsyncClient, served: Served) -> str:
        """What vLLM calls the model of this folder."""
        reply = (await client.get(f"{self._url}/models")).raise_for_status().json()
        for card in reply["data"]:
            if card.get("parent") is None and _same(str(card.get("root") or ""), served.weights):
                return str(card["id"])
        raise _down(served, f"it serves none of its models from {served.weights}")

    async def _load(self, client: httpx.AsyncClient, served: Served) -> str:
        """Have vLLM read the adapter now, whatever it had under this name before."""
        await client.post(f"{self._url}/unload_lora_adapter", json={"lora_name": served.name})
        wanted = {"lora_name": served.name, "lora_path": str(Path(served.adapter or "").resolve())}
        reply = await client.post(f"{self._url}/load_lora_adapter", json=wanted)
        if reply.status_code != 200:
            raise _down(served, f"it did not load the adapter ({reply.status_code}); see {__name__}")
        return served.name

    async def _follow(self, path: str, body: dict[str, Any], answering: Answering) -> None:
        """Pass on what vLLM says."""
        ends: list[Piece] = []
        try:
            async with self._client() as client, client.stream("POST", f"{self._url}/{path}", json=body) as reply:
                if reply.status_code != 200:
                    answering.fail(_refusal(reply.status_code, await reply.aread()))
                    return
                answering.accept(0)
                async for line in reply.aiter_lines():
                    if line.startswith("data: {"):
                        ends += _pass_on(json.loads(line.removeprefix("data: ")), answering)
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            log.error("vLLM at %s failed: %s: %s", self._url, type(error).__name__, error)
            answering.fail(_failed())
        else:
            # Behind the usage, which comes last.
            for piece in ends:
                answering.put(piece, 0)
            if len(ends) < body["n"]:
                answering.fail(_failed())


def _request(served: Served, question: Question) -> tuple[str, dict[str, Any]]:
    """Where to ask, and what."""
    body: dict[str, Any] = {
        "n": question.n,
        "max_tokens": question.max_tokens or question.most_tokens,
        "temperature": question.temperature,
        "top_p": question.top_p or 1.0,
        "seed": question.seed,
        "stop": list(question.stop),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if question.top_p == 0:
        body["temperature"] = 0
    if not question.messages:
        if served.serving is not None:
            raise wrong("This model must be asked by chat completions: it needs a system turn.", "prompt")
        prompt = question.prompt if isinstance(question.prompt, str) else list(question.prompt)
        return "completions", body | {"prompt": prompt, "logprobs": question.chances}
    body["messages"] = turns(question, served.serving)
    body["chat_template_kwargs"] = {"enable_thinking": False}
    if question.tools:
        body |= {"tools": list(question.tools), "tool_choice": "none"}
    if question.chances is not None:
        body |= {"logprobs": True, "top_logprobs": question.chances}
    return "chat/completions", body


def _pass_on(event: Mapping[str, Any], answering: Answering) -> list[Piece]:
    """One event of the stream; the ends of answers in it."""
    if "error" in event:
        raise ValueError(f"vLLM says {event['error']}")
    ends = []
    for choice in event["choices"]:
        text = choice["delta"].get("content") if "delta" in choice else choice.get("text")
        chances = _chances(choice.get("logprobs") or {})
        answering.put(Piece(index=choice["index"], text=text or "", chances=chances), 0)
        if choice.get("finish_reason") is not None:
            finish: Finish = "length" if choice["finish_reason"] == "length" else "stop"
            ends.append(Piece(index=choice["index"], text="", finish=finish))
    usage = event.get("usage")
    if usage:
        answering.prompt_tokens = usage["prompt_tokens"]
        answering.completion_tokens = usage["completion_tokens"]
    return ends


def _chances(found: Mapping[str, Any]) -> tuple[Chance, ...]:
    """Log-probabilities of a chat or of a completion."""
    if "tokens" in found:
        tops = found.get("top_logprobs") or [{}] * len(found["tokens"])
        return tuple(
            Chance(
                token=token,
                bytes=token.encode(),
                logprob=logprob,
                top=tuple(Chance(token=o, bytes=o.encode(), logprob=value) for o, value in (top or {}).items()),
            )
            for token, logprob, top in zip(found["tokens"], found["token_logprobs"], tops, strict=True)
        )
    return tuple(_chance(each) for each in found.get("content") or ())


def _chance(found: Mapping[str, Any]) -> Chance:
    return Chance(
        token=found["token"],
        bytes=bytes(found.get("bytes") or found["token"].encode()),
        logprob=found["logprob"],
        top=tuple(_chance(other) for other in found.get("top_logprobs") or ()),
    )


def _same(root: str, weights: str) -> bool:
    folder = Path(weights)
    return Path(root).resolve() == folder.resolve() if folder.is_dir() else root == weights


def _refusal(status: int, text: bytes) -> ApiProblem:
    """What vLLM refuses, in its words where they are about the request."""
    try:
        body = json.loads(text)
        said = body.get("error", body).get("message", "")
    except (ValueError, AttributeError):
        said = ""
    if status == 400 and said:
        too_long = "context length" in str(said)
        return wrong(str(said), "messages" if too_long else None, "context_length_exceeded" if too_long else None)
    log.error("vLLM answers %d: %s", status, text[:500])
    return _failed()


def _failed() -> ApiProblem:
    return ApiProblem(503, "The model failed while answering; the server's log says why.", code="model_unavailable")


def _down(served: Served, why: str) -> ApiProblem:
    log.error("vLLM cannot serve %s: %s", served.name, why)
    return ApiProblem(
        503,
        f"The model `{served.name}` cannot be loaded on this server; its log says why.",
        "model",
        "model_unavailable",
        headers={"x-should-retry": "false"},
    )
