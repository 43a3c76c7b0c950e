# SPDX-License-Identifier: Apache-2.0
"""Training files as users of OpenAI's API write them: complaints in the words they know, and rows.

A line is a chat, for supervised fine-tuning::

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "...", "weight": 1}],
     "tools": [...], "parallel_tool_calls": true}

or a preference, for DPO::

    {"input": {"messages": [...], "tools": [...]}, "preferred_output": [{"role": "assistant", ...}],
     "non_preferred_output": [{"role": "assistant", ...}]}

A file is read as a stream, line by line. `parallel_tool_calls` is about sampling: it is checked and changes no row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from moored.data.load import as_row
from moored.data.preferences import as_preference
from moored.data.schema import Example, Row, Source
from moored.errors import DataError
from moored.service.jsonl import Unreadable, read_lines
from moored.service.lines import Kind, Malformed, kind_of, must_be_chat, must_be_preference
from moored.service.policy import Limits

FEWEST = 10
"""Examples of a training file."""
MOST_COMPLAINTS = 50
"""A file with so many is not read on."""

Method = Literal["supervised", "dpo"]
E = TypeVar("E", bound=Example)

_METHODS: dict[Kind, Method] = {"chat": "supervised", "preference": "dpo"}
_NEITHER = (
    "Unexpected file format, expected either chat messages or preferences (input, preferred_output and "
    "non_preferred_output)."
)


@dataclass(frozen=True)
class Complaint:
    """What is wrong with a file.

    Args:
        line: counted from 1; 0 is the file as a whole.
        message: a whole sentence that names the line.
        code: a word for programs.
    """

    line: int
    message: str
    code: str


@dataclass(kw_only=True)
class Checked:
    """What a file holds.

    Args:
        kind: of its lines, by the first that has one; None if none has.
        examples: lines read, bad ones too.
        tokens: of the good ones; None if they were not counted.
        complaints: in the file's order; those about the file as a whole come last.
    """

    kind: Kind | None = None
    examples: int = 0
    tokens: int | None = None
    complaints: list[Complaint] = field(default_factory=list)


def check(
    path: Path,
    *,
    limits: Limits,
    method: Method | None = None,
    tokens: Callable[[Row], int] | None = None,
    name: str = "",
) -> list[Complaint]:
    """What is wrong with a training file; [] if nothing is.

    Args:
        path: the file.
        limits: of its size, its examples and their tokens.
        method: that the file is for; None: either.
        tokens: counts those of a row, for example `moored.data.chat.length`; None: they are not counted.
        name: what messages call the file, the file's own name by default.

    Raises:
        DataError: the file cannot be opened or read.
    """
    return examine(path, limits=limits, method=method, tokens=tokens, name=name).complaints


def examine(
    path: Path,
    *,
    limits: Limits,
    method: Method | None = None,
    tokens: Callable[[Row], int] | None = None,
    name: str = "",
) -> Checked:
    """What a training file holds, and what is wrong with it. Arguments and errors are those of `check`."""
    try:
        size = path.stat().st_size
        if size > limits.file_bytes:
            said = f"The file has {size:,} bytes; the most is {limits.file_bytes:,}."
            return Checked(complaints=[Complaint(0, said, "file_too_large")])
        found = _examined(path, limits, tokens)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    _as_a_whole(found, method, name or path.name)
    return found


def read(path: Path, *, name: str = "") -> Iterator[Example]:
    """The examples of a file, source "benign".

    OpenAI trains on every assistant turn that has not weight 0, so the turns of a chat with several get their weights
    here: `encode` trains an unweighted row on its last answer alone.

    Args:
        path: a file that `check` has nothing against.
        name: what messages call the file, the file's own name by default.

    Raises:
        DataError: a line is wrong after all, or the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            for number, value in read_lines(file):
                try:
                    yield _example(value)
                except Malformed as wrong:
                    raise DataError(f"{name or path.name}: {wrong.at(number)}") from wrong
    except OSError as error:
        raise DataError(f"{name or path.name} cannot be read: {error.strerror}") from error


def _examined(path: Path, limits: Limits, tokens: Callable[[Row], int] | None) -> Checked:
    found = Checked(tokens=None if tokens is None else 0)
    with path.open("rb") as file:
        for number, value in read_lines(file):
            if found.examples == limits.rows:
                said = f"The file has more than {limits.rows:,} examples, which is the most."
                found.complaints.append(Complaint(0, said, "too_many_examples"))
                break
            found.examples += 1
            try:
                _count(_checked(value, found), found, limits, tokens)
            except Malformed as wrong:
                found.complaints.append(Complaint(number, wrong.at(number), wrong.code))
                if len(found.complaints) == MOST_COMPLAINTS:
                    break
    return found


def _checked(value: Any, found: Checked) -> Example:
    kind = None if isinstance(value, Unreadable) else kind_of(value)
    found.kind = found.kind or kind
    if kind and kind != found.kind:
        raise Malformed(
            f"a {kind} in a file that begins with a {found.kind}; one file holds one kind", code="mixed_file"
        )
    return _example(value)


def _example(value: Any) -> Example:
    """The example of a line.

    Raises:
        Malformed: it is none.
    """
    if isinstance(value, Unreadable):
        raise Malformed(value.message, code=value.code, joined=True)
    match kind_of(value):
        case "chat":
            must_be_chat(value)
            return _weighted(_made(as_row, {"messages": value["messages"], "tools": value.get("tools")}))
        case "preference":
            must_be_preference(value)
            return _made(as_preference, value)
    raise Malformed(_NEITHER, code="unexpected_format")


def _made(make: Callable[[Any, str, Source], E], raw: dict[str, Any]) -> E:
    try:
        return make(raw, "", "benign")
    except DataError as error:
        raise Malformed(str(error).removeprefix(": ")) from error


def _weighted(row: Row) -> Row:
    """A chat with several answers, all of them trained on unless it says otherwise."""
    if row.weighted or sum(turn["role"] == "assistant" for turn in row.messages) < 2:
        return row
    turns = [dict(turn) | ({"weight": 1} if turn["role"] == "assistant" else {}) for turn in row.messages]
    return Row.of_record(row.record() | {"messages": turns})


def _count(example: Example, found: Checked, limits: Limits, tokens: Callable[[Row], int] | None) -> None:
    if tokens is None or found.tokens is None:
        return
    rows = (example,) if isinstance(example, Row) else (example.preferred, example.other)
    try:
        counts = [tokens(row) for row in rows]
    except DataError as error:
        raise Malformed(str(error), code="not_for_this_model") from error
    if max(counts) > limits.row_tokens:
        raise Malformed(
            f"has {max(counts):,} tokens; the most is {limits.row_tokens:,}", code="too_many_tokens", joined=True
        )
    found.tokens += sum(counts)


def _as_a_whole(found: Checked, method: Method | None, name: str) -> None:
    """Complaints that are about no line."""
    says = found.complaints
    if found.kind and method and _METHODS[found.kind] != method:
        form = {"chat": "fine-tune-chat", "preference": "fine-tune-preference"}[found.kind]
        wrong = (
            f"Input file {name} is in the {form} format, but the specified fine-tuning job is not using "
            f"'{_METHODS[found.kind]}' as the training method (provided method={method})."
        )
        says.append(Complaint(0, wrong, "wrong_method"))
    if found.examples < FEWEST and len(says) < MOST_COMPLAINTS:
        few = f"Training file has {found.examples} example(s), but must have at least {FEWEST} examples"
        says.append(Complaint(0, few, "invalid_n_examples"))
