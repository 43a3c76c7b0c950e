# SPDX-License-Identifier: Apache-2.0
"""A model behind an OpenAI-compatible URL: vLLM, llama.cpp, `moored serve`, or a hosted one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from moored.data.schema import Message, Prompts
from moored.errors import ConfigError, EndpointError, require
from moored.progress import Found, Progress
from moored.sampling import Sampling

if TYPE_CHECKING:
    from openai import OpenAI


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where to ask, and how.

    Args:
        url: up to and with the version, for example "http://localhost:8000/v1".
        model: its name there.
        key: the environment variable that holds the API key; the key itself is never shown. A variable that is not set
            sends none, which is what local servers expect.
        parallel: requests at a time, at least 1.
        timeout: for one answer [s].
        retries: after the first try, on a lost connection, a full queue (429) or a failing server (5xx).

    Raises:
        ConfigError: a value is out of range.
    """

    url: str
    model: str
    key: str = "OPENAI_API_KEY"
    parallel: int = 8
    timeout: float | int = 120
    retries: int = 4

    def __post_init__(self) -> None:
        require(self.url.startswith(("http://", "https://")), "Endpoint", "url", "an http(s) address", self.url)
        require(bool(self.model), "Endpoint", "model", "a name", self.model)
        require(self.parallel >= 1, "Endpoint", "parallel", ">= 1", self.parallel)
        require(self.timeout > 0, "Endpoint", "timeout", "> 0", self.timeout)
        require(self.retries >= 0, "Endpoint", "retries", ">= 0", self.retries)

    @classmethod
    def at(cls, address: str, **settings: Any) -> Endpoint:
        """From an address with the model's name behind a "#".

        Args:
            address: for example "http://localhost:8000/v1#my-model".
            settings: the other parameters.

        Raises:
            ConfigError: no name, a key or password in the address (it would be shown), or a value out of range.
        """
        url, _, model = address.partition("#")
        parts = urlsplit(url)
        if parts.username or parts.password or parts.query:
            raise ConfigError(
                "an address is shown in results: put no name, password or key into it; the key comes from the "
                "environment variable that `key` names"
            )
        if not model:
            raise ConfigError(f"{url} serves models by name; add the one to ask behind a #, as in {url}#my-model")
        return cls(url=url, model=model, **settings)

    def answers(
        self,
        chats: Prompts,
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        progress: Progress | None = None,
        found: Found | None = None,
    ) -> list[str]:
        """The answers, one per chat, in the order of the chats; at temperature 0 unless `sampling` is given.

        Args:
            chats: each ends with a user turn.
            max_new_tokens: tokens per answer, thinking included.
            sampling: how the server is asked to draw; the n-th chat gets `seed + n`.
            progress: called as `progress(done, total, model)`.
            found: called with the number of a chat, from 0, and its answer, in this order.

        Returns:
            The texts; "" where the model says nothing.

        Raises:
            EndpointError: a request fails for good; the others are given up.
        """
        answers: list[str] = []
        with ThreadPoolExecutor(self.parallel) as threads:
            drawn = [_drawn(sampling, number) for number in range(len(chats))]
            waiting = [
                threads.submit(self._answer, chat, max_new_tokens, how) for chat, how in zip(chats, drawn, strict=True)
            ]
            try:
                for done, answer in enumerate(waiting, start=1):
                    answers.append(answer.result())
                    if found:
                        found(done - 1, answers[-1])
                    if progress:
                        progress(done, len(waiting), self.model)
            finally:
                for answer in waiting:
                    answer.cancel()
        return answers

    def _answer(self, chat: Sequence[Message], limit: int, how: Mapping[str, Any]) -> str:
        from openai import OpenAIError

        turns: list[Any] = [dict(turn) for turn in chat]
        try:
            said = self._client.chat.completions.create(model=self.model, messages=turns, max_tokens=limit, **how)
        except OpenAIError as error:
            raise EndpointError(f"{self.model} at {self.url} gives no answer: {_reason(error)}") from error
        return (said.choices[0].message.content or "").strip() if said.choices else ""

    @cached_property
    def _client(self) -> OpenAI:
        try:
            from openai import OpenAI
        except ImportError as error:
            raise ConfigError("asking a model behind a URL needs the client: pip install 'moored[endpoint]'") from error
        key = os.environ.get(self.key) or "none"
        return OpenAI(base_url=self.url, api_key=key, timeout=self.timeout, max_retries=self.retries)


def _drawn(sampling: Sampling | None, number: int) -> dict[str, Any]:
    """What a request says on drawing its answer."""
    if sampling is None:
        return {"temperature": 0.0}
    return {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed + number}


def _reason(error: Exception) -> str:
    """What went wrong, without what was sent."""
    status = getattr(error, "status_code", None)
    body = getattr(error, "body", None)
    said = body.get("message") if isinstance(body, dict) else None
    return " ".join(str(part) for part in (status, said or (status and "refused") or error) if part)
