# SPDX-License-Identifier: Apache-2.0
"""What OpenAI's API demands of one line of a training file, and how it says what is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from moored.data.load import ROLES
from moored.errors import unknown
from moored.service.jsonl import parsed

Kind = Literal["chat", "preference"]

_LINE = ("messages", "tools", "parallel_tool_calls", "source", "category")
"""The last two are the bookkeeping of files that moored wrote; they are read over."""
_PREFERENCE = ("input", "preferred_output", "non_preferred_output")
_TURN = dict.fromkeys(ROLES, ("role", "content", "name")) | {
    "assistant": ("role", "content", "name", "weight", "tool_calls"),
    "tool": ("role", "content", "name", "tool_call_id"),
}
_NAME = re.compile(r"[^\s<|\\/>]{1,64}")
_FUNCTION = re.compile(r"[a-zA-Z0-9_.-]{1,64}")


class Malformed(Exception):
    """A line is not what it must be.

    Args:
        what: is wrong.
        place: in the line, for example `message 2`; "" is the line itself.
        code: a word for programs.
        joined: `what` continues "Line 3 ", as in "Line 3 is blank".
    """

    def __init__(self, what: str, place: str = "", *, code: str = "invalid_file_format", joined: bool = False):
        super().__init__(what)
        self.what, self.place, self.code, self.joined = what, place, code, joined

    def at(self, number: int) -> str:
        """The whole sentence.

        Args:
            number: of the line.
        """
        place = f", {self.place}" if self.place else ""
        return f"Invalid file format. Line {number}{place}{' ' if self.joined else ': '}{self.what.rstrip('.')}."


def kind_of(value: Any) -> Kind | None:
    """What a line is meant to be, by its keys.

    Args:
        value: the line's.
    """
    if not isinstance(value, dict):
        return None
    if "messages" in value:
        return "chat"
    return "preference" if any(key in value for key in _PREFERENCE) else None


def must_be_chat(line: Mapping[str, Any]) -> None:
    """Check a line for supervised fine-tuning.

    Args:
        line: one of the kind "chat".

    Raises:
        Malformed: says where and what.
    """
    _known_keys(line, _LINE, "")
    _offers(line)
    turns = _turns(line["messages"], "messages", "message")
    answers = [turn for turn in turns if turn["role"] == "assistant"]
    if not answers:
        raise Malformed(
            "At least one message must be from the assistant", 'key "messages"', code="no_assistant_message"
        )
    if all(turn["role"] != "user" for turn in turns):
        raise Malformed("At least one message must be from the user", 'key "messages"', code="no_user_message")
    if turns[-1]["role"] != "assistant":
        raise Malformed("The last message must be from the assistant", 'key "messages"', code="last_message")
    if all(turn.get("weight") == 0 for turn in answers):
        raise Malformed(
            "At least one assistant message must have a weight other than 0", 'key "messages"', code="no_weight"
        )


def must_be_preference(line: Mapping[str, Any]) -> None:
    """Check a line for DPO.

    Args:
        line: one of the kind "preference".

    Raises:
        Malformed: says where and what.
    """
    _known_keys(line, (*_PREFERENCE, "source", "category"), "")
    for key in _PREFERENCE:
        if key not in line:
            raise Malformed("Field required", f'key "{key}"')
    asked = line["input"]
    if not isinstance(asked, dict):
        raise Malformed(f"must be an object with messages; got {_kind(asked)}", 'key "input"')
    _known_keys(asked, _LINE[:3], 'key "input"')
    _offers(asked)
    turns = _turns(asked.get("messages"), "input.messages", "input message")
    if all(turn["role"] != "user" for turn in turns):
        raise Malformed("At least one message must be from the user", 'key "input.messages"', code="no_user_message")
    if turns[-1]["role"] not in ("user", "tool"):
        raise Malformed("The last message must be from the user or a tool", 'key "input.messages"', code="last_message")
    outputs = [_output(line[key], key) for key in _PREFERENCE[1:]]
    if any("weight" in turn for turn in (*turns, *outputs)):
        raise Malformed("weight is for supervised fine-tuning; leave it out", code="weight_in_preference")
    if outputs[0] == outputs[1]:
        raise Malformed("preferred_output and non_preferred_output are the same", code="same_outputs")


def _output(value: Any, key: str) -> Mapping[str, Any]:
    if not isinstance(value, list) or len(value) != 1:
        raise Malformed(f"must be a list of one assistant message; got {_kind(value)}", f'key "{key}"')
    (turn,) = _turns(value, key, f"{key} message")
    if turn["role"] != "assistant":
        raise Malformed("The message must be from the assistant", f'key "{key}"', code="no_assistant_message")
    return turn


def _offers(line: Mapping[str, Any]) -> None:
    """The tools of a line, and how they may be called."""
    tools = line.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise Malformed(f"must be a list; got {_kind(tools)}", 'key "tools"')
    for number, tool in enumerate(tools or (), start=1):
        function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
        if not isinstance(function, dict) or not _matches(_FUNCTION, function.get("name")):
            raise Malformed('must be {"type": "function", "function": {"name": ...}}', f'key "tools", tool {number}')
        if not isinstance(function.get("parameters", {}), dict):
            raise Malformed("parameters must be a JSON schema", f'key "tools", tool {number}')
    if not isinstance(line.get("parallel_tool_calls"), bool | None):
        raise Malformed("must be true or false", 'key "parallel_tool_calls"')


def _turns(value: Any, key: str, place: str) -> Sequence[Mapping[str, Any]]:
    if not isinstance(value, list) or not value:
        raise Malformed(f"must be a list of messages; got {_kind(value)}", f'key "{key}"')
    waiting: set[str] = set()
    for number, turn in enumerate(value, start=1):
        where = f"{place} {number}"
        _turn(turn, where)
        waiting = _answered(turn, waiting, where)
    return value


def _turn(turn: Any, where: str) -> None:
    if not isinstance(turn, dict):
        raise Malformed(f"must be an object with role and content; got {_kind(turn)}", where)
    if "role" not in turn:
        raise Malformed("Discriminator 'role' is missing in value", where)
    role = turn["role"]
    if not isinstance(role, str) or role not in ROLES:
        raise Malformed(f"role must be one of {', '.join(ROLES)}; got {_shown(role)}", where)
    _known_keys(turn, _TURN[role], where)
    if turn.get("name") is not None and not _matches(_NAME, turn["name"]):
        raise Malformed("name must be a word of at most 64 characters, none of them of <|\\/>", where)
    if turn.get("weight") is not None and (isinstance(turn["weight"], bool) or turn["weight"] not in (0, 1)):
        raise Malformed(f"weight must be 0 or 1; got {_shown(turn['weight'])}", where, code="invalid_weight")
    calls = turn.get("tool_calls")
    if calls is not None:
        _calls(calls, where)
    if role == "tool" and not (isinstance(turn.get("tool_call_id"), str) and turn["tool_call_id"]):
        raise Malformed("a tool's message needs a tool_call_id", where, code="invalid_tool_call")
    _content(turn, where)


def _content(turn: Mapping[str, Any], where: str) -> None:
    content = turn.get("content")
    if content is None and turn.get("tool_calls"):
        return
    if isinstance(content, list) and content:
        for part in content:
            if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
                raise Malformed("only parts of the type text can be trained on", where, code="unsupported_content")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise Malformed(f"content must be text; got {_kind(content)}", where)
    if not content.strip() and turn["role"] != "tool" and not turn.get("tool_calls"):
        raise Malformed("content is empty", where, code="empty_content")


def _calls(calls: Any, where: str) -> None:
    if not isinstance(calls, list) or not calls:
        raise Malformed(f"tool_calls must be a list of calls; got {_kind(calls)}", where, code="invalid_tool_call")
    for call in calls:
        function = call.get("function") if isinstance(call, dict) and call.get("type") == "function" else None
        if not (
            isinstance(function, dict)
            and _matches(_FUNCTION, function.get("name"))
            and isinstance(call.get("id"), str)
            and call["id"]
        ):
            raise Malformed(
                'a tool call must be {"id": ..., "type": "function", "function": {"name": ..., "arguments": ...}}',
                where,
                code="invalid_tool_call",
            )
        if not _is_object(function.get("arguments")):
            raise Malformed("arguments of a tool call must be a JSON object, as text", where, code="invalid_tool_call")


def _answered(turn: Mapping[str, Any], waiting: set[str], where: str) -> set[str]:
    """The calls that wait for an answer of their tool after this turn."""
    if turn["role"] == "tool":
        if turn["tool_call_id"] not in waiting:
            raise Malformed(
                f"tool_call_id {_shown(turn['tool_call_id'])} answers no tool call that is open",
                where,
                code="invalid_tool_call",
            )
        return waiting - {turn["tool_call_id"]}
    if waiting:
        raise Malformed(
            "an assistant message with tool_calls must be followed by tool messages responding to each tool_call_id; "
            f"{_shown(min(waiting))} has none",
            where,
            code="invalid_tool_call",
        )
    return {call["id"] for call in turn.get("tool_calls") or ()}


def _is_object(text: Any) -> bool:
    if not isinstance(text, str):
        return False
    # The line was decoded from UTF-8 and has no lone surrogates, so it can be encoded again.
    return isinstance(parsed(text.encode()), dict)


def _known_keys(value: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Refuse keys that say something and would be lost; what clients export as null or [] says nothing."""
    for key, said in value.items():
        if key not in known and said is not None and said != []:
            raise Malformed(str(unknown("key", key[:40], known)), where, code="unknown_key")


def _matches(pattern: re.Pattern[str], text: Any) -> bool:
    return isinstance(text, str) and pattern.fullmatch(text) is not None


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "nothing"}
    return f"a list of {len(value)}" if isinstance(value, list) else names.get(type(value), "a number")
