# SPDX-License-Identifier: Apache-2.0
"""Rows from files, the hub and the synthetic sets; bad input is refused before anything else happens."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moored.data.schema import Example, Message, Row, Source
from moored.data.synthetic import SETS
from moored.errors import DataError, require, unknown

if TYPE_CHECKING:
    import datasets

    from moored.datasets.base import PublicSet

SUFFIXES = (".jsonl", ".json", ".csv")
ROLES = ("system", "developer", "user", "assistant", "tool")
"""Who speaks. A developer turn is read as the system's, which is what it was before it had a name of its own."""
ACCEPTED = (
    "messages | prompt (+ completion, response or answer) | instruction (+ input) (+ output) | "
    "goal (+ target) | question (+ answer) | sentence + label (0/1)"
)
"""The shapes of a row, as error messages name them."""

_HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(:(?P<split>[\w.\[\]:%+/-]+))?")
_PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "answer"),
    ("instruction", "output"),
    ("goal", "target"),
    ("question", "answer"),
)
_SENTIMENT = {"0": "Negative", "1": "Positive", "negative": "Negative", "positive": "Positive"}
_SENTIMENT_PROMPT = "Is the sentiment of this sentence positive or negative? Answer with one word.\n\nSentence: {}"

_PUBLIC = re.compile(r"(?P<name>\w+)(:(?P<part>[\w./-]+))?(@(?P<file>.+))?")

Raw = dict[str, Any]
"""A row as it is stored."""

Numbered = Iterator[tuple[str, Any]]
"""Where a row stands ("file.jsonl, line 3"), and the row as it was read."""


def load_rows(where: str | Path, *, source: Source, limit: int | None = None) -> list[Row]:
    """Rows from wherever they are.

    Args:
        where: "synthetic:<set>" (the set's seed is 0), a public set of `moored list datasets` ("xs_test",
            "xs_test:safe", "xs_test:safe@prompts.csv" for a local copy), a local .jsonl, .json or .csv file, or a hub
            data set "owner/name" or "owner/name:split" (split "train" if none is named; a public set's id
            and parts are known). Nothing but a public set without a file and a hub id opens a connection.
        source: given to every row, whatever the file says.
        limit: read only the first so many rows; None reads all.

    Returns:
        At least one row. A row without an answer key is prompt-only. A field `category` is kept: a string, or
        BeaverTails' mapping of names to booleans.

    Raises:
        DataError: no such file or set, nothing in it, or a row that cannot be read; names file and line.
        ConfigError: `limit` is below 1.
    """
    require(limit is None or limit >= 1, "load_rows", "limit", ">= 1 or None", limit)
    name = str(where)
    if name.startswith("synthetic:"):
        return [replace(row, source=source) for row in _synthetic(name.removeprefix("synthetic:"))[:limit]]
    if known := public_set(where):
        numbered = known.read()
    else:
        hub = _hub_id(where)
        numbered = read_hub(hub["name"], split=hub["split"] or "train") if hub else read_file(Path(where))
    rows = [as_row(raw, place, source) for place, raw in islice(numbered, limit)]
    if not rows:
        raise DataError(f"{name} holds no rows; give a file with at least one")
    return rows


def public_set(where: str | Path) -> PublicSet | None:
    """The public data set that `load_rows` reads here, None if it is something else.

    Args:
        where: see `load_rows`.

    Raises:
        DataError: the set has no such part.
    """
    from moored.catalogue import catalogue

    if isinstance(where, Path) or where.startswith("synthetic:"):
        return None
    sets: Mapping[str, Any] = catalogue("datasets")
    if (named := _PUBLIC.fullmatch(where)) and named["name"] in sets:
        return sets[named["name"]](part=named["part"] or "", file=named["file"] or "")
    hub = _hub_id(where)
    cls = next((cls for cls in sets.values() if hub and cls.hub == hub["name"]), None)
    if hub is None or cls is None or (hub["split"] or next(iter(cls.parts))) not in cls.parts:
        return None  # a split or slice of its own is read as it is
    return cls(part=hub["split"] or "")


def provenance(where: str | Path) -> dict[str, str]:
    """What a manifest says of data: of a public set its part, version and licence, else the name; no machine paths.

    Args:
        where: see `load_rows`.
    """
    known = public_set(where)
    if known is not None:
        return known.manifest()
    local = isinstance(where, Path) or Path(where).exists()
    return {"name": Path(where).name if local else str(where)}


def _synthetic(name: str) -> list[Row]:
    if name not in SETS:
        raise DataError(str(unknown("synthetic set", name, SETS)))
    return SETS[name](0)


def _hub_id(where: str | Path) -> re.Match[str] | None:
    """The hub id that `where` is, unless it means a file: a Path, something that exists or ends like one."""
    path = Path(where)
    if isinstance(where, Path) or path.exists() or path.suffix.lower() in SUFFIXES:
        return None
    return _HUB_ID.fullmatch(where)


def read_file(path: Path) -> Numbered:
    """The rows of a local file, each with its place for messages.

    Args:
        path: a .jsonl, .json or .csv file.

    Raises:
        DataError: no such file, one of another kind, or one that cannot be read.
    """
    if not path.exists():
        raise DataError(
            f"no data at {path}: give synthetic:<set>, a {', '.join(SUFFIXES)} file, or a hub id owner/name"
        )
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv}
    reader = readers.get(path.suffix.lower())
    if path.is_dir() or reader is None:
        kind = "a folder" if path.is_dir() else f"a {path.suffix or 'nameless'} file"
        raise DataError(f"{path} is {kind}; give a {', '.join(SUFFIXES)} file")
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _read_jsonl(path: Path) -> Numbered:
    with path.open(encoding="utf-8-sig", newline="\n") as lines:  # a lone carriage return is JSON's white space
        for number, line in enumerate(lines, start=1):
            if line.strip():
                place = f"{path}, line {number}"
                yield place, _parsed(line, place)


def _read_json(path: Path) -> Numbered:
    text = path.read_text(encoding="utf-8-sig")
    if not text.strip():
        return
    rows = _parsed(text, str(path))
    if not isinstance(rows, list):
        raise DataError(f"{path} must hold a list of rows; got {_kind(rows)} (one row per line is a .jsonl file)")
    for number, row in enumerate(rows, start=1):
        yield f"{path}, row {number}", row


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise DataError(f"{place}: not valid JSON ({error.msg}, {at}column {error.colno})") from error


def _read_csv(path: Path) -> Numbered:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        try:
            for row in reader:
                place = f"{path}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise DataError(f"{place}: the header has {len(reader.fieldnames or ())} columns, this row not")
                yield place, row
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: not valid CSV ({error})") from error


def read_hub(
    name: str, *, config: str = "", split: str = "train", files: str = "", columns: tuple[str, ...] = ()
) -> Numbered:
    """The rows of a data set on the hub, each with its place for messages.

    Args:
        name: "owner/name".
        config: the configuration, "" if there is one alone.
        split: the split.
        files: a CSV file without a head in that repository, read in place of its configurations.
        columns: names of that file's columns.

    Raises:
        DataError: it cannot be loaded; says why.
    """
    import datasets

    try:
        if files:
            where = f"hf://datasets/{name}/{files}"
            rows = datasets.load_dataset("csv", data_files=where, split=split, column_names=list(columns))
        else:
            rows = datasets.load_dataset(name, *([config] if config else []), split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")
        raise DataError(
            f"the hub data set {name!r} cannot be loaded (split {split!r}: {reason}); check the id and the "
            "connection, or give a local file"
        ) from error
    for number, row in enumerate(rows, start=1):
        yield f"{name}, row {number}", row


def as_row(raw: Any, place: str, source: Source) -> Row:
    """One row of any of the `ACCEPTED` shapes.

    Args:
        raw: as it was read.
        place: where it stands, for messages.
        source: given to the row.

    Raises:
        DataError: it has no such shape.
    """
    if not isinstance(raw, dict):
        raise DataError(f"{place}: a row must be an object; got {_kind(raw)}")
    if isinstance(raw.get("instances"), list) and raw["instances"] and isinstance(raw["instances"][0], dict):
        raw = {**raw, **raw["instances"][0]}  # Self-Instruct seed tasks: the first worked example
    if "messages" in raw:
        turns = _turns(raw["messages"], place, "messages")
    elif "sentence" in raw and "label" in raw:
        turns = _sentiment(raw, place)
    else:
        turns = _pair(raw, place)
    if not any(turn["role"] == "user" for turn in turns) or turns[-1]["role"] == "system":
        raise DataError(f"{place}: a chat needs a user turn, and a user or assistant turn at its end")
    tools = raw.get("tools") or []
    if isinstance(tools, str):  # as sets on the hub store them, because an Arrow column has one type
        tools = _parsed(tools, f"{place}, `tools`")
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise DataError(f"{place}: `tools` must be a list of objects; got {_kind(tools)}")
    return Row(messages=tuple(turns), source=source, category=_category(raw.get("category")), tools=tuple(tools))


def _turns(value: Any, place: str, key: str) -> list[Message]:
    """The turns of a list of `{"role", "content"}`."""
    if not isinstance(value, list) or not value:
        raise DataError(f"{place}: `{key}` must be a non-empty list of turns; got {_kind(value)}")
    turns = []
    for number, turn in enumerate(value, start=1):
        what = f"turn {number} of `{key}`"
        if not isinstance(turn, dict) or not ({"role", "content"} <= turn.keys() or turn.get("tool_calls")):
            raise DataError(f"{place}: {what} must be an object with role and content; got {_kind(turn)}")
        if turn.get("role") not in ROLES:
            raise DataError(f"{place}: the role of {what} must be one of {', '.join(ROLES)}; got {turn.get('role')!r}")
        turns.append(_turn(turn, place, what))
    return turns


def _turn(turn: Mapping[str, Any], place: str, what: str) -> Message:
    """One turn, with those of its optional keys that say something."""
    role, content = turn["role"], turn.get("content")
    parts = isinstance(content, list) and content and all(isinstance(p, dict) and "text" in p for p in content)
    if parts and all(isinstance(part["text"], str) for part in content or ()):
        content = "".join(part["text"] for part in content or ())
    blank = content is None or (isinstance(content, str) and not content.strip())
    silent = blank and (turn.get("tool_calls") if role == "assistant" else role == "tool" and content is not None)
    text = "" if silent else _text(content, place, f"the content of {what}")
    read = Message(role="system" if role == "developer" else role, content=text)
    if isinstance(turn.get("name"), str):
        read["name"] = turn["name"]
    if turn.get("weight") is not None:
        if role != "assistant" or turn["weight"] not in (0, 1):
            raise DataError(f"{place}: `weight` of {what} must be 0 or 1, and on an assistant turn")
        read["weight"] = int(turn["weight"])
    if turn.get("tool_calls"):
        read["tool_calls"] = _calls(turn["tool_calls"], place, what)
    if isinstance(turn.get("tool_call_id"), str):
        read["tool_call_id"] = turn["tool_call_id"]
    return read


def _calls(value: Any, place: str, what: str) -> list[dict[str, Any]]:
    """The tool calls of a turn: each names a function."""
    named = isinstance(value, list) and all(
        isinstance(call, dict)
        and isinstance(call.get("function"), dict)
        and isinstance(call["function"].get("name"), str)
        for call in value
    )
    if not named:
        raise DataError(f"{place}: `tool_calls` of {what} must be a list of calls, each with its function's name")
    return list(value)


def _pair(raw: Mapping[str, Any], place: str) -> list[Message]:
    """A prompt with its answer, or a prompt alone."""
    whole = next(((p, a) for p, a in _PAIRS if p in raw and raw.get(a) is not None), None)
    asks, answers = whole or (next((p for p, _ in _PAIRS if p in raw), None), None)
    if asks is None:
        keys = ", ".join(map(str, raw)) or "none"
        raise DataError(f"{place}: a row with the keys {keys} has no known shape; accepted: {ACCEPTED}")
    turns = []
    if raw.get("system"):
        turns.append(Message(role="system", content=_text(raw["system"], place, "`system`")))
    if isinstance(raw[asks], list):
        turns += _turns(raw[asks], place, asks)
    else:
        prompt = _text(raw[asks], place, f"`{asks}`")
        if asks == "instruction" and raw.get("input"):
            prompt += "\n\n" + _text(raw["input"], place, "`input`")
        turns.append(Message(role="user", content=prompt))
    if answers and isinstance(raw[answers], list):
        turns += _turns(raw[answers], place, answers)
    elif answers:
        turns.append(Message(role="assistant", content=_text(raw[answers], place, f"`{answers}`")))
    return turns


def _sentiment(raw: Mapping[str, Any], place: str) -> list[Message]:
    """SST-2: a sentence and 0 or 1."""
    label = _SENTIMENT.get(str(raw["label"]).lower())
    if label is None:
        raise DataError(f"{place}: `label` must be 0, 1, negative or positive; got {raw['label']!r}")
    sentence = _text(raw["sentence"], place, "`sentence`")
    return [
        Message(role="user", content=_SENTIMENT_PROMPT.format(sentence.strip())),
        Message(role="assistant", content=label),
    ]


def _text(value: Any, place: str, what: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{place}: {what} must be text; got {_kind(value)}")
    if not value.strip():
        raise DataError(f"{place}: {what} is empty; fill it in or leave the row out")
    return value


def _category(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(str(name) for name, applies in value.items() if applies is True)
    return value if isinstance(value, str) else ""


def _kind(value: Any) -> str:
    """A value's type in JSON's words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    if isinstance(value, list) and not value:
        return "an empty list"
    return names.get(type(value), "a number")


def save_rows(rows: Sequence[Example], path: str | Path) -> Path:
    """Write rows (or preferences) as JSONL that `load_rows` reads; an interrupted write leaves an old file as it was.

    Args:
        rows: at least one.
        path: the file; its folder must exist.

    Raises:
        DataError: there are no rows, or the file cannot be written.
    """
    path = Path(path)
    if not rows:
        raise DataError(f"there are no rows to write to {path}")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row.record(), ensure_ascii=False) + "\n" for row in rows)
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def to_dataset(rows: Sequence[Row]) -> datasets.Dataset:
    """Rows as a `datasets.Dataset` in TRL's conversational prompt-completion format.

    The columns are `prompt` and `completion` (lists of turns), with `tools` (as JSON text, which TRL reads) where a
    row has some, and nothing else: `Row.source` never reaches a collator.

    Args:
        rows: at least one, each with an answer.

    Raises:
        DataError: there are no rows, or one has no answer, or weighs its turns.
    """
    import datasets

    if not rows:
        raise DataError("a training set needs at least one row; got none")
    for number, row in enumerate(rows, start=1):
        if not row.answered:
            raise DataError(f"row {number} has no answer to train on: {row.question[:60]!r}")
        if row.weighted:
            raise DataError(f"row {number} weighs its turns, which TRL cannot; train it with `moored.hf.train`")
    tools = {"tools": [json.dumps(row.tools) for row in rows]} if any(row.tools for row in rows) else {}
    return datasets.Dataset.from_dict(
        {
            "prompt": [[dict(turn) for turn in row.prompt] for row in rows],
            "completion": [[dict(row.messages[-1])] for row in rows],
            **tools,
        }
    )
