# SPDX-License-Identifier: Apache-2.0
"""Chats to text and tokens: one rendering, the same for training and for generation.

A tokenizer with a chat template is rendered by that template. One without gets a plain layout, where `<bos>`
stands only if the tokenizer would have put it there itself, and `<eos>` ends every assistant turn::

    <bos>System text

    User: question
    Assistant: answer<eos>
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from moored.data.schema import Message, Row
from moored.errors import DataError, require

IGNORED = -100
"""The label that cross-entropy leaves out."""

Encoded = dict[str, list[int]]


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, generation: bool = True) -> str:
    """A chat as the model reads it.

    Tokenise the result with `add_special_tokens=False`: the special tokens are already in it. Templates that
    know `enable_thinking` are rendered with it off, so that an answer starts at once in training and in
    generation alike.

    Args:
        tokenizer: its chat template is used; without one, the plain layout of this module.
        messages: turns, oldest first.
        generation: end with the opening of an assistant turn, for the model to continue.

    Raises:
        DataError: the chat template refuses these turns.
    """
    if not tokenizer.chat_template:
        return _plain(tokenizer, messages, generation)
    folded = _without_system(messages)
    text = None
    try:
        text = str(
            tokenizer.apply_chat_template(
                [{"role": message["role"], "content": message["content"]} for message in messages],
                tokenize=False,
                add_generation_prompt=generation,
                enable_thinking=False,
            )
        )
    except TemplateError as error:
        if not folded:
            roles = ", ".join(message["role"] for message in messages)
            raise DataError(f"the tokenizer's chat template refuses a chat of the turns ({roles}): {error}") from error
    if text is None or (folded and messages[0]["content"].strip() not in text):
        return render(tokenizer, folded, generation=generation)  # a system turn that it refuses or drops
    return text


def _without_system(messages: Sequence[Message]) -> list[Message]:
    """The chat with its system turn at the head of the first question; [] if it does not begin with these two."""
    if [message["role"] for message in messages[:2]] != ["system", "user"]:
        return []
    system, user, *rest = messages
    return [Message(role="user", content=f"{system['content']}\n\n{user['content']}"), *rest]


def _plain(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], generation: bool) -> str:
    """The layout for tokenizers without a chat template."""
    starts_with_bos = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    layout = {
        "system": "{}\n\n",
        "user": "User: {}\n",
        "assistant": "Assistant: {}" + (tokenizer.eos_token or "") + "\n",
    }
    for message in messages:
        if message["role"] not in layout:
            raise DataError(
                f"a tokenizer without a chat template knows the roles {', '.join(layout)}; got {message['role']!r}"
            )
    body = "".join(layout[message["role"]].format(message["content"]) for message in messages)
    # No space after the colon: the space belongs to the answer's first token.
    return (tokenizer.bos_token if starts_with_bos else "") + body + ("Assistant:" if generation else "")


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids of a prompt that the model is to continue: exactly those before the answer in `encode`.

    Args:
        tokenizer: see `render`.
        messages: the turns before the answer.
    """
    return _ids(tokenizer, render(tokenizer, messages))


def encode(tokenizer: PreTrainedTokenizerBase, row: Row, *, max_length: int) -> Encoded:
    """One training row: the loss is on the final answer and the token that ends its turn, on nothing else.

    Whatever a template puts behind the end-of-turn token (often a newline) is dropped: no model generates it.

    Args:
        tokenizer: see `render`.
        row: a chat with an answer.
        max_length: tokens kept, at least 1; longer rows lose their end.

    Returns:
        `input_ids`, `attention_mask` (all 1) and `labels` (-100 outside the answer), of equal length.

    Raises:
        ConfigError: `max_length` is below 1.
        DataError: the row has no answer, or none of it would be left after `max_length` tokens.
    """
    require(max_length >= 1, "encode", "max_length", ">= 1", max_length)
    if not row.answer.strip():
        raise DataError(f"a training row needs an answer; {_shown(row)} has none")
    prompt = render(tokenizer, row.prompt)
    answer = _answer_text(tokenizer, row, prompt)
    before = _ids(tokenizer, prompt)
    ids = _ids(tokenizer, prompt + answer)
    if ids[: len(before)] != before:
        # A token spans the seam. Generation sees the prompt alone, so training must too.
        ids = before + _ids(tokenizer, answer)
    if len(before) >= min(max_length, len(ids)):
        raise DataError(
            f"no token of the answer is left: the prompt of {_shown(row)} has {len(before)} tokens and "
            f"`max_length` is {max_length}; raise `max_length` or drop the row"
        )
    ids = ids[:max_length]
    labels = [IGNORED] * len(before) + ids[len(before) :]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


def _answer_text(tokenizer: PreTrainedTokenizerBase, row: Row, prompt: str) -> str:
    """What stands behind the prompt: the answer as the template writes it, and the end of its turn.

    A stand-in answer shows where the template puts answers: a search for the answer's own text could hit the
    markup.
    """
    stand_in = Message(role="assistant", content="\u241fanswer\u241f")
    shown = render(tokenizer, (*row.prompt, stand_in), generation=False)
    head, found, end = shown.partition(stand_in["content"])
    full = render(tokenizer, row.messages, generation=False)
    if not (found and full.startswith(head) and full.endswith(end)):
        raise DataError(f"the tokenizer's chat template moves or drops the answer of {_shown(row)}")
    content = full[len(head) : len(full) - len(end)]
    opening = head[len(prompt) :] if head.startswith(prompt) else ""
    return opening + content + (end.rstrip() or tokenizer.eos_token or "")


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _shown(row: Row) -> str:
    question = row.question
    return f"the row {question[:60] + ('...' if len(question) > 60 else '')!r}"


@dataclass(frozen=True)
class AnswerCollator:
    """Pads encoded rows on the right to the longest of the batch.

    Args:
        pad_token_id: the id to pad with; it is masked and never learnt, so any id of the vocabulary does.

    Raises:
        ConfigError: `pad_token_id` is not a token id (a tokenizer without a pad token has None).
    """

    pad_token_id: int

    def __post_init__(self) -> None:
        ok = isinstance(self.pad_token_id, int) and self.pad_token_id >= 0
        require(ok, "AnswerCollator", "pad_token_id", "a token id >= 0", self.pad_token_id)

    def __call__(self, rows: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Int[Tensor, "batch length"]]:
        """A batch of `input_ids`, `attention_mask` and `labels`; other columns are left out.

        Args:
            rows: what `encode` returns, at least one.
        """
        filler = {"input_ids": self.pad_token_id, "attention_mask": 0, "labels": IGNORED}
        length = max(len(row["input_ids"]) for row in rows)
        return {
            name: torch.tensor([[*row[name], *[fill] * (length - len(row[name]))] for row in rows])
            for name, fill in filler.items()
        }
