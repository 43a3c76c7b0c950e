# SPDX-License-Identifier: Apache-2.0
"""Judges that ask a language model: one request per answer, read by a pattern, never asked twice."""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from moored.data.schema import Message, Prompts
from moored.endpoint import Endpoint
from moored.judges.base import Exchange, ModelJudge, Reading

SHOWN = 80
"""Characters of a reply that cannot be read which the reason quotes."""


@dataclass(frozen=True, kw_only=True)
class Asking(ModelJudge):
    """A judge behind an OpenAI-compatible URL. What it says in no known form is not judged (NaN), with the reason.

    Args:
        url: see `Endpoint`.
        model: its name there; part of every verdict.
        key: the environment variable that holds the API key.
        parallel: requests at a time.
        max_new_tokens: per verdict, thinking included.
    """

    url: str
    model: str
    key: str = "OPENAI_API_KEY"
    parallel: int = 8
    max_new_tokens: int = 512

    @property
    def label(self) -> str:
        """With the model, as it is named at the URL."""
        return f"{self.name} {self.version}, {self.model}"

    @property
    @abstractmethod
    def instructions(self) -> str:
        """The system message: what is to be judged, and in which form."""

    @abstractmethod
    def read(self, reply: str) -> Reading | None:
        """Value and reason from a reply; None if it is in no known form."""

    def chat(self, exchange: Exchange) -> list[Message]:
        """What the model is asked about one answer: the instructions, then the request and the answer."""
        return [Message(role="system", content=self.instructions), Message(role="user", content=quoted(exchange))]

    def readings(self, exchanges: Sequence[Exchange]) -> list[Reading]:
        """See `ModelJudge.readings`.

        Raises:
            EndpointError: the model does not answer.
        """
        return [self.reading(said) for said in self.replies([self.chat(exchange) for exchange in exchanges])]

    def replies(self, chats: Prompts) -> list[str]:
        """What the model says, one reply per chat, in their order.

        Args:
            chats: each asked once.

        Raises:
            EndpointError: the model does not answer.
        """
        endpoint = Endpoint(url=self.url, model=self.model, key=self.key, parallel=self.parallel)
        return endpoint.answers(chats, max_new_tokens=self.max_new_tokens)

    def reading(self, said: str) -> Reading:
        """What `read` makes of a reply; NaN with what was said where it is in no known form.

        Args:
            said: "" where the model said nothing.
        """
        missing = f"the judge said {said[:SHOWN]!r}" if said else "the judge said nothing"
        return (self.read(said) if said else None) or (math.nan, missing)


def quoted(exchange: Exchange) -> str:
    """The request and the answer, each between marks of its own, so that neither can pass for the other.

    Args:
        exchange: what is judged.
    """
    return marked(request=exchange.prompt, answer=exchange.answer)


def marked(**parts: str) -> str:
    """Texts, each between marks with its name, which none of the texts can open or close.

    Args:
        parts: the texts by name.
    """
    return "\n\n".join(f"<{name}>\n{_without(parts, text)}\n</{name}>" for name, text in parts.items())


def _without(names: Iterable[str], text: str) -> str:
    """The text without the marks; taken out until none is left, because what remains can make new ones."""
    mark = re.compile(rf"</?(?:{'|'.join(names)})>", re.IGNORECASE)
    while mark.search(text):
        text = mark.sub("", text)
    return text


def numbers(reply: str, name: str, low: int, high: int) -> int | None:
    """The last `name: number` of a reply within a range; None if there is none.

    Args:
        reply: of the model.
        name: what stands before the colon, in any case; "#" and "*" around it do not matter.
        low: smallest number.
        high: largest number.
    """
    found = re.findall(rf"\b{name}\W{{0,3}}[:=]\W{{0,3}}(\d+)(?![\d.])", reply, flags=re.IGNORECASE)
    within = [int(number) for number in found if low <= int(number) <= high]
    return within[-1] if within else None
