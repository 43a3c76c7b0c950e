# SPDX-License-Identifier: Apache-2.0
"""Preferences from files and the synthetic sets, and preferences made of rows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moored.data.load import as_row, read_file
from moored.data.schema import Preference, Row, Source, normalise
from moored.data.synthetic import PREFERENCES
from moored.errors import DataError, unknown

KEYS = ("input", "preferred_output", "non_preferred_output")
"""Of a preference, as users of OpenAI's API write it."""


def load_preferences(where: str | Path) -> list[Preference]:
    """Preferences from wherever they are.

    Args:
        where: "synthetic:<set>" ("synthetic:alignment-preferences"; the set's seed is 0), or a local .jsonl or .json
            file, as users of OpenAI's API write it.

    Returns:
        At least one.

    Raises:
        DataError: no such file or set, nothing in it, or one that cannot be read; names file and line.
    """
    if str(where).startswith("synthetic:"):
        name = str(where).removeprefix("synthetic:")
        if name not in PREFERENCES:
            raise DataError(str(unknown("synthetic set of preferences", name, PREFERENCES)))
        return PREFERENCES[name](0)
    found = [as_preference(raw, place, "benign") for place, raw in read_file(Path(where))]
    if not found:
        raise DataError(f"{where} holds no preferences; give a file with at least one")
    return found


def as_preference(raw: Any, place: str, source: Source) -> Preference:
    """A preference as users of OpenAI's API write it.

    Args:
        raw: as it was read.
        place: where it stands, for messages.
        source: given to both rows.

    Raises:
        DataError: it has another shape.
    """
    if not isinstance(raw, dict) or not isinstance(raw.get("input"), dict) or any(key not in raw for key in KEYS):
        raise DataError(f"{place}: a preference must be an object with {', '.join(KEYS)}")
    asked = raw["input"]
    for key, value in (("input.messages", asked.get("messages")), *((key, raw[key]) for key in KEYS[1:])):
        if not isinstance(value, list) or not value:
            raise DataError(f"{place}: `{key}` of a preference must be a list of turns with at least one")
    better, worse = (
        as_row({"messages": [*asked["messages"], *raw[key]], "tools": asked.get("tools")}, place, source)
        for key in KEYS[1:]
    )
    if any(len(raw[key]) != 1 for key in KEYS[1:]) or not (better.answered and worse.answered):
        raise DataError(f"{place}: each output of a preference must be one assistant turn that says or calls something")
    return Preference(preferred=better, other=worse)


def paired(preferred: Iterable[Row], others: Iterable[Row]) -> list[Preference]:
    """Preferences of rows with the same prompt, in the order of the preferred ones; rows without a partner are out.

    Args:
        preferred: rows with the better answers.
        others: rows with the worse answers; of several with one prompt the first counts.

    Raises:
        DataError: no prompt is in both.
    """
    worse: dict[str, Row] = {}
    for row in others:
        worse.setdefault(normalise(row.question), row)
    pairs = [
        Preference(preferred=row, other=row.reworded(answer=worse[normalise(row.question)].answer))
        for row in preferred
        if normalise(row.question) in worse
    ]
    if not pairs:
        raise DataError("no prompt has both a preferred and another answer; give two sets that share prompts")
    return pairs
