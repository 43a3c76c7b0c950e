# SPDX-License-Identifier: Apache-2.0
"""From a question to the tokens that the model reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from moored.data.chat import render
from moored.service.problems import wrong
from moored.service.question import Question, turns
from moored.serving import Serving


def prompt_of(tokenizer: Any, question: Question, serving: Serving | None, vocabulary: int) -> list[int]:
    """The tokens of a question, with what the model must be served with in front, once.

    Args:
        tokenizer: of the model.
        question: what was asked.
        serving: what every request must carry.
        vocabulary: how many tokens the model knows.

    Raises:
        ApiProblem: 400: text that the model would take for the layout of a chat, or a token that there is not.
        DataError: the chat template refuses these turns.
    """
    if question.messages:
        _refuse_markup(tokenizer, [message["content"] for message in question.messages], "messages")
        return _ids(tokenizer, render(tokenizer, turns(question, serving), tools=question.tools))
    before = render(tokenizer, serving.apply([]), generation=False) if serving else ""
    if isinstance(question.prompt, str):
        own = tokenizer(question.prompt)["input_ids"] if not before else None
        own = own if own is not None else _ids(tokenizer, before + question.prompt.removeprefix(before))
    else:
        unknown = next((token for token in question.prompt if not 0 <= token < vocabulary), None)
        if unknown is not None:
            raise wrong(f"There is no token {unknown}; this model knows 0 to {vocabulary - 1}.", "prompt")
        prefix = _ids(tokenizer, before)
        own = list(question.prompt)
        own = own if own[: len(prefix)] == prefix else prefix + own
    if not own:
        raise wrong("`prompt` must not be empty.", "prompt")
    return list(own)


def fitted(question: Question, prompt: int, positions: int | None) -> int:
    """How many tokens each answer may have.

    Args:
        question: what was asked.
        prompt: tokens of the prompt.
        positions: what the model has room for; None if it does not say.

    Raises:
        ApiProblem: 400 `context_length_exceeded`.
    """
    wanted = question.max_tokens if question.max_tokens is not None else 1
    if positions is not None and prompt + wanted > positions:
        what = "messages" if question.messages else "prompt"
        raise wrong(
            f"This model's maximum context length is {positions} tokens. However, you requested {prompt + wanted} "
            f"tokens ({prompt} in the {what}, {wanted} in the completion). Please reduce the length of the {what} or "
            "completion.",
            what,
            "context_length_exceeded",
        )
    if question.max_tokens is not None:
        return question.max_tokens
    return min(question.most_tokens, question.most_tokens if positions is None else positions - prompt)


def _refuse_markup(tokenizer: Any, texts: Sequence[str], param: str) -> None:
    """Refuse what would be read as the end of a turn, or as a turn of somebody else."""
    marks = [mark for mark in tokenizer.all_special_tokens if any(mark in text for text in texts)]
    if marks:
        raise wrong(
            f"The text {marks[0]!r} has a meaning of its own in this model's chats, so that it cannot be part of a "
            "message; write it in another way.",
            param,
        )


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def bytes_of(tokenizer: Any, token: int) -> bytes:
    """What a token adds to an answer, also where it is a part of a character.

    Args:
        tokenizer: of the model.
        token: its id.
    """
    spelled = tokenizer.convert_ids_to_tokens(token)
    if isinstance(spelled, str) and token not in tokenizer.all_special_ids:
        if byte := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", spelled):
            return bytes([int(byte[1], 16)])
        if _byte_level(tokenizer) and all(letter in _letters() for letter in spelled):
            return bytes(_letters()[letter] for letter in spelled)
    return str(tokenizer.decode([token])).encode()


def _byte_level(tokenizer: Any) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return "ByteLevel" in type(getattr(backend, "decoder", None)).__name__ or "ByteLevel" in repr(
        getattr(backend, "decoder", None)
    )


@cache
def _letters() -> dict[str, int]:
    """The byte behind each letter of byte-level vocabularies: printable Latin-1 stands for itself."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + n): byte for n, byte in enumerate(others)}
