# SPDX-License-Identifier: Apache-2.0
"""A public data set: where it is, how its rows read, and under which licence it may be used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from moored.data.load import Numbered, Raw, read_file, read_hub
from moored.errors import DataError, unknown


@dataclass(frozen=True, kw_only=True)
class Part:
    """Which rows of a set.

    Args:
        config: the hub's configuration, "" if the set has one alone.
        split: the hub's split.
        keep: values that a row must have, by column; rows with others are left out, in files too.
    """

    config: str = ""
    split: str = "train"
    keep: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PublicSet:
    """Base of public data sets; a frozen choice of which rows, and from where.

    Attributes:
        name: the name in the catalogue; `load_rows` takes "name", "name:part" and "name:part@file".
        title: as its authors call it.
        hub: hub id.
        gated: whether the hub asks to accept terms first.
        licence: SPDX identifier where there is one; says so where none is stated.
        version: of the release whose format is read here.
        arxiv: id of the paper, "" if it is not there.
        parts: by name; the first is taken if none is named.
        columns: the set's own names of columns, and what `load_rows` calls them.

    Args:
        part: which rows, "" takes the first of `parts`.
        file: a local copy in the set's public format (.jsonl, .json or .csv); "" takes the hub.

    Raises:
        DataError: no such part.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    hub: ClassVar[str]
    gated: ClassVar[bool] = False
    licence: ClassVar[str]
    version: ClassVar[str]
    arxiv: ClassVar[str] = ""
    parts: ClassVar[Mapping[str, Part]] = {"train": Part()}
    columns: ClassVar[Mapping[str, str]] = {}

    part: str = ""
    file: str = ""

    def __post_init__(self) -> None:
        if self.part and self.part not in self.parts:
            raise DataError(str(unknown(f"part of {self.name}", self.part, self.parts)))

    @property
    def chosen(self) -> Part:
        """The rows that are meant."""
        return self.parts[self.part or next(iter(self.parts))]

    def read(self) -> Numbered:
        """Each row in a shape that `load_rows` takes, with its place for messages.

        Raises:
            DataError: the file or the hub cannot be read; of a gated set the message says what to do.
        """
        for place, raw in self.numbered():
            if not isinstance(raw, dict):
                raise DataError(f"{place}: a row of {self.title} must be an object")
            # What a column is compared with may be text in a file (CSV) and a value on the hub.
            if all(
                str(raw.get(column, value)).lower() == str(value).lower() for column, value in self.chosen.keep.items()
            ):
                yield place, self.row(raw, place)

    def numbered(self) -> Numbered:
        """The rows as they are stored."""
        if self.file:
            yield from read_file(Path(self.file))
            return
        try:
            yield from read_hub(self.hub, config=self.chosen.config, split=self.chosen.split)
        except DataError as error:
            if not self.gated:
                raise
            raise DataError(
                f"{error}. {self.title} is gated: accept its terms on the hub's page and log in with a token, or give "
                f"a local copy ({self.name}@<file>)"
            ) from error

    def row(self, raw: Raw, place: str) -> Raw:
        """One row in a shape that `load_rows` takes; `columns` renamed.

        Args:
            raw: as it is stored.
            place: of the row, for messages.

        Raises:
            DataError: the row is not in the set's format.
        """
        return {self.columns.get(name, name): value for name, value in raw.items()}

    def manifest(self) -> dict[str, str]:
        """What a manifest or record says of it."""
        where = {"file": Path(self.file).name} if self.file else {"hub": self.hub}
        part = self.part or next(iter(self.parts))
        return {"name": self.name, "title": self.title, "part": part, **where} | {
            "version": self.version,
            "licence": self.licence,
        }


def column(raw: Raw, names: tuple[str, ...], place: str) -> Any:
    """The value of the first of several columns that a row has.

    Args:
        raw: the row.
        names: of the columns; the first is the one to name in a message.
        place: of the row.

    Raises:
        DataError: it has none of them.
    """
    found: Iterator[Any] = (raw[name] for name in names if raw.get(name) not in (None, ""))
    value = next(found, None)
    if value is None:
        raise DataError(f"{place}: needs the column `{names[0]}`; the row has {', '.join(map(str, raw)) or 'none'}")
    return value


BASE = PublicSet
