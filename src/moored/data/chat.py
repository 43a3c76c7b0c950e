# SPDX-License-Identifier: Apache-2.0
"""Chats to text and tokens: one rendering, the same for training and for generation.

A tokenizer with a chat template is rendered by that template. One without gets a plain layout, where `<bos>`
stands only if the tokenizer would have put it there itself, and `<eos>` ends every assistant turn::

    <bos>System text

    User: question
    Assistant: answer<eos>
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

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

_STAND_IN = Message(role="assistant", content="\u241fanswer\u241f")
"""An answer that no template and no chat holds: shows where a template puts answers."""


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    generation: bool = True,
    tools: Sequence[Mapping[str, Any]] = (),
) -> str:
    """A chat as the model reads it.

    Tokenise the result with `add_special_tokens=False`: the special tokens are already in it. Templates that
    know `enable_thinking` are rendered with it off, so that an answer starts at once in training and in
    generation alike.

    Args:
        tokenizer: its chat template is used; without one, the plain layout of this module.
        messages: turns, oldest first.
        generation: end with the opening of an assistant turn, for the model to continue.
        tools: what the assistant may call, see `Row.tools`.

    Raises:
        DataError: the chat template refuses these turns, or says nothing of tools that are there or called.
    """
    if tools or any("tool_calls" in message or message["role"] == "tool" for message in messages):
        return _with_tools(tokenizer, messages, generation, tools)
    return _rendered(tokenizer, messages, generation, ())


def _rendered(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    generation: bool,
    tools: Sequence[Mapping[str, Any]],
) -> str:
    """`render`, whatever the template makes of tools."""
    if not tokenizer.chat_template:
        return _plain(tokenizer, messages, generation)
    folded = _without_system(messages)
    text = None
    try:
        text = str(
            tokenizer.apply_chat_template(
                [_as_read(message) for message in messages],
                tokenize=False,
                add_generation_prompt=generation,
                enable_thinking=False,
                tools=[dict(tool) for tool in tools] or None,
            )
        )
    except TemplateError as error:
        if not folded:
            roles = ", ".join(message["role"] for message in messages)
            raise DataError(f"the tokenizer's chat template refuses a chat of the turns ({roles}): {error}") from error
    if text is None or (folded and messages[0]["content"].strip() not in text):
        return _rendered(tokenizer, folded, generation, tools)  # a system turn that it refuses or drops
    return text


def _as_read(message: Message) -> dict[str, Any]:
    """A turn as templates read it: arguments as an object, and no `weight`, which is about training."""
    turn = {key: value for key, value in message.items() if key != "weight"}
    if "tool_calls" in message:
        turn["tool_calls"] = [_call_as_read(call) for call in message["tool_calls"]]
    return turn


def _call_as_read(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError as error:
            raise DataError(f"the arguments of a call of {function['name']!r} are not JSON: {error}") from error
    return {**call, "type": "function", "function": {**function, "arguments": arguments}}


def _with_tools(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    generation: bool,
    tools: Sequence[Mapping[str, Any]],
) -> str:
    """A chat with tools, where the template shows all of them: one that leaves some out would train on half a chat."""
    offered = {str(tool.get("function", tool).get("name", "")): "offers" for tool in tools}
    called = {call["function"]["name"]: "calls" for message in messages for call in message.get("tool_calls", ())}
    answered = {message["content"].strip(): "is answered" for message in messages if message["role"] == "tool"}
    text = _rendered(tokenizer, messages, generation, tools)
    for shown, what in (offered | called | answered).items():
        # Templates may write text as JSON: what is looked for then stands there with escapes.
        if shown not in text and json.dumps(shown, ensure_ascii=False)[1:-1] not in text:
            raise DataError(
                f"the tokenizer's chat template cannot show tools: the chat {what} {shown[:60]!r}, and the rendered "
                "text does not say so; use a model with a template for tools, or leave them out"
            )
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
    if any("tool_calls" in message for message in messages):
        raise DataError("a tokenizer without a chat template cannot show tools; use a model with a template for them")
    body = "".join(layout[message["role"]].format(message["content"]) for message in messages)
    # No space after the colon: the space belongs to the answer's first token.
    return (tokenizer.bos_token if starts_with_bos else "") + body + ("Assistant:" if generation else "")


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] = ()
) -> list[int]:
    """Token ids of a prompt that the model is to continue: exactly those before the answer in `encode`.

    Args:
        tokenizer: see `render`.
        messages: the turns before the answer.
        tools: see `render`.
    """
    return _ids(tokenizer, render(tokenizer, messages, tools=tools))


def length(tokenizer: PreTrainedTokenizerBase, row: Row) -> int:
    """Tokens of a whole row as the model reads it.

    Args:
        tokenizer: see `render`.
        row: any chat.

    Raises:
        DataError: the chat template refuses it.
    """
    return len(_ids(tokenizer, render(tokenizer, row.messages, generation=False, tools=row.tools)))


def encode(tokenizer: PreTrainedTokenizerBase, row: Row, *, max_length: int) -> Encoded:
    """One training row: the loss is on the final answer and the token that ends its turn, on nothing else.

    In a row whose turns have weights (`Row.weighted`) it is on every assistant turn but those of weight 0.

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
    if row.weighted:
        return _encode_weighted(tokenizer, row, max_length)
    if not (row.answer.strip() or row.calls):
        raise DataError(f"a training row needs an answer; {_shown(row)} has none")
    prompt = render(tokenizer, row.prompt, tools=row.tools)
    answer = _answer_text(tokenizer, row, prompt)
    before = _ids(tokenizer, prompt)
    ids = _continued(tokenizer, before, prompt, answer)
    if len(before) >= min(max_length, len(ids)):
        raise DataError(
            f"no token of the answer is left: the prompt of {_shown(row)} has {len(before)} tokens and "
            f"`max_length` is {max_length}; raise `max_length` or drop the row"
        )
    ids = ids[:max_length]
    labels = [IGNORED] * len(before) + ids[len(before) :]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


def _continued(tokenizer: PreTrainedTokenizerBase, before: list[int], text: str, more: str) -> list[int]:
    """The tokens of `text` with `more` behind it, where those of `text` alone are `before`."""
    ids = _ids(tokenizer, text + more)
    if ids[: len(before)] != before:
        # A token spans the seam. Generation sees the prompt alone, so training must too.
        ids = before + _ids(tokenizer, more)
    return ids


def _encode_weighted(tokenizer: PreTrainedTokenizerBase, row: Row, max_length: int) -> Encoded:
    """A row with the loss on several turns; what stands behind the last of them is left out."""
    trained = [
        number
        for number, turn in enumerate(row.messages)
        if turn["role"] == "assistant" and turn.get("weight") != 0 and (turn["content"].strip() or "tool_calls" in turn)
    ]
    if not trained:
        raise DataError(f"a training row needs an assistant turn with a weight other than 0; {_shown(row)} has none")
    until = replace(row, messages=row.messages[: trained[-1] + 1])
    prompt = render(tokenizer, until.prompt, tools=row.tools)
    text = prompt + _answer_text(tokenizer, until, prompt)
    spans = [_span(tokenizer, until, number, prompt) for number in trained[:-1]] + [(len(prompt), len(text))]
    ids, labels, at = list[int](), list[int](), 0
    for begin, end in spans:
        ids = _continued(tokenizer, ids, text[:at], text[at:begin])
        labels += [IGNORED] * (len(ids) - len(labels))
        ids = _continued(tokenizer, ids, text[:begin], text[begin:end])
        labels += ids[len(labels) :]
        at = end
    ids, labels = ids[:max_length], labels[:max_length]
    if all(label == IGNORED for label in labels):
        raise DataError(
            f"no token to train on is left of {_shown(row)}: all of them stand behind {max_length} tokens "
            "(`max_length`); raise it or drop the row"
        )
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


def _span(tokenizer: PreTrainedTokenizerBase, row: Row, number: int, prompt: str) -> tuple[int, int]:
    """Where an earlier assistant turn stands in the prompt of the row's last one, the end of its turn included."""
    before = row.messages[:number]
    shown = render(tokenizer, (*before, _STAND_IN, *row.prompt[number + 1 :]), tools=row.tools)
    head, _, rest = shown.partition(_STAND_IN["content"])
    alone = render(tokenizer, (*before, _STAND_IN), generation=False, tools=row.tools)
    mark = alone.partition(_STAND_IN["content"])[2].rstrip()
    if not (rest.startswith(mark) and prompt.startswith(head) and prompt.endswith(rest)):
        raise DataError(
            f"turn {number + 1} of {_shown(row)} cannot be found in what the tokenizer's chat template writes; give it "
            "weight 0, and a row of its own that ends with it"
        )
    opening = render(tokenizer, before, tools=row.tools)
    return len(opening if head.startswith(opening) else head), len(prompt) - len(rest) + len(mark)


def _answer_text(tokenizer: PreTrainedTokenizerBase, row: Row, prompt: str) -> str:
    """What stands behind the prompt: the answer as the template writes it, and the end of its turn."""
    if row.calls:
        full = render(tokenizer, row.messages, generation=False, tools=row.tools)
        if not full.startswith(prompt):
            raise DataError(f"the tokenizer's chat template moves the tool calls of {_shown(row)}")
        return full[len(prompt) :].rstrip()
    return _said(tokenizer, row, prompt)


def _said(tokenizer: PreTrainedTokenizerBase, row: Row, prompt: str) -> str:
    """`_answer_text` of an answer in words.

    A stand-in answer shows where the template puts answers: a search for the answer's own text could hit the
    markup.
    """
    shown = render(tokenizer, (*row.prompt, _STAND_IN), generation=False, tools=row.tools)
    head, found, end = shown.partition(_STAND_IN["content"])
    full = render(tokenizer, row.messages, generation=False, tools=row.tools)
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
