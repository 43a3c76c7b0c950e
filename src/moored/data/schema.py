# SPDX-License-Identifier: Apache-2.0
"""The one row type that everything speaks: a chat whose last turn may be the assistant's."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NotRequired, TypedDict, cast

Source = Literal["benign", "harmful", "alignment"]


class Message(TypedDict):
    """One turn of a chat.

    Only `role` and `content` must be there; the rest is what tools and weighted training add, spelt as OpenAI's API
    does. The `content` of a turn that only calls tools is "".
    """

    role: str
    content: str
    name: NotRequired[str]
    weight: NotRequired[int]
    tool_calls: NotRequired[list[dict[str, Any]]]
    tool_call_id: NotRequired[str]


_TURN = ("role", "content", "name", "weight", "tool_calls", "tool_call_id")


Prompts = Sequence[Sequence[Message]]
"""Chats that end with a user turn."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One chat.

    Args:
        messages: turns, oldest first; the last one is the assistant's if the row has an answer.
        source: which kind of data the row is. Bookkeeping only: never shown to a model.
        category: for example one of the 14 BeaverTails categories; "" if none.
        tools: what the assistant may call, as JSON schemas of functions; what a chat template shows the model.
    """

    messages: tuple[Message, ...]
    source: Source = "benign"
    category: str = ""
    tools: tuple[dict[str, Any], ...] = ()

    def __hash__(self) -> int:
        turns = tuple((message["role"], message["content"]) for message in self.messages)
        return hash((turns, self.source, self.category))

    @classmethod
    def of(cls, prompt: str, answer: str = "", *, system: str = "", **fields: Any) -> Row:
        """A single-turn row; an empty `answer` makes a prompt-only row."""
        turns = [Message(role="system", content=system)] if system else []
        turns.append(Message(role="user", content=prompt))
        if answer:
            turns.append(Message(role="assistant", content=answer))
        return cls(messages=tuple(turns), **fields)

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Row:
        """The row that `record` wrote.

        Args:
            record: plain JSON.
        """
        return cls(
            messages=tuple(
                cast(Message, {key: turn[key] for key in _TURN if key in turn}) for turn in record["messages"]
            ),
            source=record["source"],
            category=record["category"],
            tools=tuple(record.get("tools", ())),
        )

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The turns before the answer."""
        return self.messages[:-1] if self.answered else self.messages

    @property
    def answer(self) -> str:
        """The text of the final assistant turn, "" if there is none, or if it only calls tools."""
        last = self.messages[-1]
        return last["content"] if last["role"] == "assistant" else ""

    @property
    def calls(self) -> list[dict[str, Any]]:
        """The tools that the final assistant turn calls."""
        last = self.messages[-1]
        return last.get("tool_calls", []) if last["role"] == "assistant" else []

    @property
    def answered(self) -> bool:
        """Whether the last turn is the assistant's and says or calls something: what can be trained on."""
        return bool(self.answer or self.calls)

    @property
    def weighted(self) -> bool:
        """Whether turns say by their `weight` which of them are trained on; else only the final answer is."""
        return any("weight" in turn for turn in self.messages)

    @property
    def system(self) -> str:
        """The system prompt, "" if there is none."""
        return next((m["content"] for m in self.messages if m["role"] == "system"), "")

    @property
    def question(self) -> str:
        """The last user turn: what prompt-level de-duplication compares, after `normalise`."""
        return next((m["content"] for m in reversed(self.messages) if m["role"] == "user"), "")

    def reworded(
        self,
        *,
        question: str | None = None,
        answer: str | None = None,
        system: str = "",
        source: Source | None = None,
    ) -> Row:
        """The row with other words; what is None stays.

        Args:
            question: the last user turn.
            answer: the final assistant turn, added if there was none.
            system: the system prompt, before one that is there; "" adds nothing.
            source: which kind of data the new row is.
        """
        turns = list(self.prompt)
        if question is not None:
            last = max((at for at, turn in enumerate(turns) if turn["role"] == "user"), default=len(turns))
            turns[last : last + 1] = [Message(role="user", content=question)]
        if system:
            both = f"{system} {self.system}".strip()
            turns = [Message(role="system", content=both), *(turn for turn in turns if turn["role"] != "system")]
        if answer is None and self.answered:
            turns.append(self.messages[-1])
        elif answer:
            turns.append(Message(role="assistant", content=answer))
        return replace(self, messages=tuple(turns), source=source or self.source)

    def record(self) -> dict[str, Any]:
        """The row as plain JSON; without tools there is no key for them."""
        tools = {"tools": list(self.tools)} if self.tools else {}
        return {
            "messages": [dict(m) for m in self.messages],
            "source": self.source,
            "category": self.category,
            **tools,
        }


@dataclass(frozen=True, kw_only=True)
class Preference:
    """Two answers to one prompt, and which of them is better: what DPO learns from.

    Args:
        preferred: the row with the better answer.
        other: the same chat with the worse one.
    """

    preferred: Row
    other: Row

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Preference:
        """The preference that `record` wrote; its rows have the source "benign".

        Args:
            record: plain JSON.
        """
        asked = record["input"]
        better, worse = (
            Row.of_record({**asked, "messages": [*asked["messages"], *record[key]], "source": "benign", "category": ""})
            for key in ("preferred_output", "non_preferred_output")
        )
        return cls(preferred=better, other=worse)

    @property
    def question(self) -> str:
        """The last user turn: see `Row.question`."""
        return self.preferred.question

    @property
    def answered(self) -> bool:
        """Whether both answers say or call something."""
        return self.preferred.answered and self.other.answered

    def record(self) -> dict[str, Any]:
        """As plain JSON, as users of OpenAI's API write it."""
        tools = {"tools": list(self.preferred.tools)} if self.preferred.tools else {}
        return {
            "input": {"messages": [dict(turn) for turn in self.preferred.prompt], **tools},
            "preferred_output": [dict(self.preferred.messages[-1])],
            "non_preferred_output": [dict(self.other.messages[-1])],
        }


Example = Row | Preference
"""What a model is trained on: one answer, or two of which one is better."""


_ENDS = " .,;:!?\"'`\u2018\u2019\u201c\u201d\u2026"
"""What `normalise` takes off both ends of a prompt."""


def normalise(text: str) -> str:
    """`text` as prompts are compared: NFKC, case-folded, single spaces, no sentence marks or quotes at the ends.

    Other punctuation stays: "3+2" and "3*2" are two prompts, and so are "C" and "C++".

    Args:
        text: usually `Row.question`.
    """
    words = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return words.strip(_ENDS) or words


def prompt_id(text: str) -> str:
    """Twelve hex digits that stand for a prompt in records: equal for equal texts, and nothing can be read from them.

    Args:
        text: `Row.question`, as it was asked.
    """
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def overlap(rows: Iterable[Example], other: Iterable[Example]) -> set[str]:
    """The normalised questions that two sets share; training and evaluation rows must share none.

    Args:
        rows: one set.
        other: the other set.
    """
    return {normalise(row.question) for row in rows} & {normalise(row.question) for row in other}


def fingerprint(rows: Iterable[Example]) -> str:
    """SHA-256 of rows in their order, over one canonical JSON line each.

    Args:
        rows: any rows, none too.
    """
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row.record(), sort_keys=True, ensure_ascii=True).encode() + b"\n")
    return digest.hexdigest()
