# SPDX-License-Identifier: Apache-2.0
"""The folder of a job: what the worker and the process that trains tell each other, and what is left for people.

::

    jobs/<job id>/
    ├── rows.jsonl        what is trained on, after the screen
    ├── held_out.jsonl    what the loss is measured on, if the user gave a validation file
    ├── screening.json    what the screen found
    ├── recipe.yaml       the study; written whole, and again when a repair is to be added
    ├── progress.jsonl    one event per line, appended by the process that trains
    ├── process.json      which process that is, or by what name its launcher finds it
    ├── made.json         where its models are in the store
    ├── record.json       the study's record; if it is of the recipe, the study is finished
    ├── failure.json      why it is not, if it never will be
    └── tuning.log        what the process printed; for the operator
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moored.errors import MooredError
from moored.report.record import Record
from moored.service.durable import write_whole
from moored.study.recipe import Recipe

RECIPE = "recipe.yaml"
ROWS = "rows.jsonl"
HELD_OUT = "held_out.jsonl"
PROCESS = "process.json"


@dataclass(frozen=True)
class JobFolder:
    """The folder of one job.

    Args:
        path: where it is.
    """

    path: Path

    @property
    def recipe(self) -> Path:
        """The study."""
        return self.path / RECIPE

    @property
    def rows(self) -> Path:
        """What is trained on."""
        return self.path / ROWS

    @property
    def held_out(self) -> Path:
        """What the loss is measured on."""
        return self.path / HELD_OUT

    @property
    def progress(self) -> Path:
        """One event per line."""
        return self.path / "progress.jsonl"

    @property
    def record(self) -> Path:
        """The study's record."""
        return self.path / "record.json"

    @property
    def log(self) -> Path:
        """What the process printed."""
        return self.path / "tuning.log"

    @property
    def lock(self) -> Path:
        """Held by the process at work; the system frees it when that dies."""
        return self.path / "tuning.lock"

    def write(self, name: str, text: str) -> Path:
        """Write a file, whole or not at all.

        Args:
            name: of the file.
            text: what it is to hold.

        Raises:
            OSError: the disk is full, or cannot be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.path / name, text)
        return self.path / name

    def write_json(self, name: str, value: Mapping[str, Any]) -> Path:
        """Write plain JSON, whole or not at all; see `write`."""
        return self.write(name, json.dumps(value, indent=1, ensure_ascii=False) + "\n")

    def read_json(self, name: str) -> dict[str, Any] | None:
        """What `write_json` wrote; None if there is no such file."""
        try:
            return dict(json.loads((self.path / name).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def forget(self, name: str) -> None:
        """Remove a file, if it is there."""
        (self.path / name).unlink(missing_ok=True)

    def finished(self) -> Record | None:
        """The record of the recipe as it is now; None if the study is not finished."""
        if not self.record.is_file() or self.read_json("made.json") is None:
            return None
        try:
            record = Record.load(self.record)
            return record if record.recipe == Recipe.load(self.recipe).plain() else None
        except MooredError:  # of another version, or changed by hand: the study says it again
            return None

    def events(self, start: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
        """The whole lines of the progress, each with the position behind it.

        Args:
            start: position to begin at: 0, or one that this gave before.
        """
        if not self.progress.is_file():
            return
        with self.progress.open("rb") as file:
            file.seek(start)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # still being written
                start += len(line)
                try:
                    yield start, dict(json.loads(line))
                except ValueError:  # the end of one that was never written whole
                    continue
