# SPDX-License-Identifier: Apache-2.0
"""Run a recipe: every stage once, whatever was finished before is reused, whatever was stopped goes on."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from moored.digest import Sha256
from moored.errors import StudyError, unknown
from moored.report.record import Record
from moored.study.plan import Plan, plan
from moored.study.recipe import Recipe
from moored.study.results import build
from moored.study.stages import AlignStage, Session, Stage
from moored.study.store import Done, Store, no_space

State = Literal["reused", "waiting", "started", "working", "finished"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something happened to a stage.

    Args:
        stage: which.
        index: of the stage, from 1.
        count: of all stages.
        row: title of the first row of the table that needs it.
        state: what happened; "waiting": another process is at this stage.
        done: how far the stage is, of `total`.
        total: 0 if unknown.
        what: a few words, for example the loss.
        seconds: wall time of the stage, when it is finished or reused.
    """

    stage: Stage
    index: int
    count: int
    row: str
    state: State
    done: int = 0
    total: int = 0
    what: str = ""
    seconds: float = 0.0


Watcher = Callable[[Event], None]


def silent(event: Event) -> None:
    """Watch nothing."""


@dataclass(frozen=True)
class Study:
    """A recipe that can be run.

    Args:
        recipe: what to do.

    Example:
        >>> Study(Recipe.load("demo")).run(Store("runs"))  # doctest: +SKIP
    """

    recipe: Recipe

    def plan(self, sha256: Sha256 | None = None) -> Plan:
        """What would be done, with everything checked that can be without training; see `study.plan`."""
        return plan(self.recipe, sha256)

    def run(self, store: Store, watch: Watcher = silent, *, command: str = "", made: Collection[str] = ()) -> Record:
        """Do all stages that the store does not have, and build the record.

        Args:
            store: where finished stages are.
            watch: told what happens.
            command: the command line, for the record.
            made: keys of stages that other processes did for this very run, so that they are not reused ones.

        Raises:
            ConfigError, DataError, NeedsError: the recipe is wrong; nothing was done.
            StudyError: no space, or a store that cannot be used; what was finished is kept.
            MooredError: a stage failed; what was finished before it is kept.
        """
        planned = self.plan(store.sha256)
        _check_room(store, planned.stages)
        reused = _taken(planned, store, watch, {stage.key for stage in planned.stages})
        return build(
            self.recipe,
            planned,
            lambda stage: _finished(store, stage),
            reused=[key for key in reused if key not in made],
            command=command,
        )

    def work(self, store: Store, watch: Watcher = silent, *, row: str) -> None:
        """Do what one row of the table needs and the store does not have.

        Args:
            store: see `run`.
            watch: see `run`.
            row: name of a chain of the plan.

        Raises:
            ConfigError: no such row; or see `run`.
            MooredError: see `run`.
        """
        planned = self.plan(store.sha256)
        found = next((chain for chain in planned.chains if chain.name == row), None)
        if found is None:
            raise unknown("row", row, [chain.name for chain in planned.chains])
        needed = found.needed()
        _check_room(store, list(needed.values()))
        _taken(planned, store, watch, needed.keys())


def _taken(planned: Plan, store: Store, watch: Watcher, keys: Collection[str]) -> list[str]:
    """Take every stage with one of these keys; those that were there already."""
    stages, rows, session = planned.stages, planned.rows(), Session()
    reused: list[str] = []
    for index, stage in enumerate(stages, start=1):
        if stage.key in keys:
            turn = _Turn(store, session, watch, stage, index, len(stages), rows[stage.key])
            if turn.take().reused:
                reused.append(stage.key)
    return reused


@dataclass(frozen=True)
class _Outcome:
    done: Done
    reused: bool


@dataclass(frozen=True)
class _Turn:
    """One stage's turn in a run."""

    store: Store
    session: Session
    watch: Watcher
    stage: Stage
    index: int
    count: int
    row: str

    def take(self) -> _Outcome:
        """Reuse the stage, or do it."""
        found = self.store.find(self.stage)
        if found is None:
            with self.store.claim(self.stage, lambda: self._tell("waiting")) as work:
                found = self.store.find(self.stage)  # another process may have finished it meanwhile
                if found is None:
                    return _Outcome(self._do(work), reused=False)
        self._tell("reused", seconds=found.seconds)
        return _Outcome(found, reused=True)

    def _do(self, work: Path) -> Done:
        self._tell("started")
        self.store.started(self.stage)
        begin = time.perf_counter()
        try:
            self.stage.run(self._where, work, self.session, self._progress)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise no_space(self.store.root) from error
            raise
        seconds = time.perf_counter() - begin
        done = self.store.finished(self.stage, seconds)
        self._tell("finished", seconds=seconds)
        return done

    def _where(self, stage: Stage) -> Path:
        return _finished(self.store, stage).folder

    def _progress(self, done: int, total: int, what: str) -> None:
        self._tell("working", done=done, total=total, what=what)

    def _tell(self, state: State, **details: Any) -> None:
        self.watch(Event(stage=self.stage, index=self.index, count=self.count, row=self.row, state=state, **details))


def _finished(store: Store, stage: Stage) -> Done:
    done = store.find(stage)
    if done is None:
        raise StudyError(f"{store.folder(stage)} disappeared while the study ran; run the same command again")
    return done


def _check_room(store: Store, stages: list[Stage]) -> None:
    """Refuse to start if the merged models of the missing alignment stages would not fit on the disk."""
    missing = [stage for stage in stages if isinstance(stage, AlignStage) and store.find(stage) is None]
    folders = [Path(stage.source.resolved) for stage in missing]
    need = sum(file.stat().st_size for folder in folders if folder.is_dir() for file in folder.iterdir())
    free = shutil.disk_usage(store.root).free
    if need > free:
        raise StudyError(
            f"the store {store.root} needs {need / 1e9:.1f} GB for the aligned models and has "
            f"{free / 1e9:.1f} GB free; free some space or choose another --store"
        )
