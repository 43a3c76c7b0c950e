# SPDX-License-Identifier: Apache-2.0
"""A study whose rows are run by a launcher: each row of its table is a process of its own, on one shared store.

A row begins when nothing that it still needs is being made for another row, so that no process waits for another one
with a device in its hands. The store's locks hold beside that. When all rows are there, the record is built as
`Study.run` builds it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import yaml

from moored.errors import StudyError
from moored.report.record import Record
from moored.service.folder import JobFolder
from moored.service.launchers.base import STOPPED, Away, Ended, Handle, Launcher, NoSlot
from moored.service.row import ROW
from moored.study.plan import Chain, Plan
from moored.study.store import Store
from moored.study.study import Event, Study, Watcher, silent

MOST_DEATHS = 3
"""Times that the process of a row may end without a word."""

log = logging.getLogger("moored.service")

_TOLD = ("started", "working", "finished")


@dataclass
class _Running:
    """The process of a row.

    Args:
        chain: the row.
        handle: of the launcher.
        at: how much of its progress was told.
    """

    chain: Chain
    handle: Handle
    at: int


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Runs a study by a launcher.

    Args:
        study: what to do.
        store: of finished stages; all machines of the launcher must see its folder by the same name.
        launcher: where rows run.
        watch: told what happens.
        look: time between two looks at the processes [s].
        grace: how long they have to write a checkpoint when the run is stopped [s].
    """

    study: Study
    store: Store
    launcher: Launcher
    watch: Watcher = silent
    look: float = 0.5
    grace: float = 120.0
    _running: dict[str, _Running] = field(default_factory=dict, init=False)
    _deaths: dict[str, int] = field(default_factory=dict, init=False)
    _away: set[str] = field(default_factory=set, init=False)

    def run(self, *, command: str = "") -> Record:
        """Do all rows, and build the record.

        Args:
            command: the command line, for the record.

        Raises:
            MooredError: the recipe is wrong, or a row failed; what was finished is kept.
        """
        planned = self.study.plan(self.store.sha256)
        before = {stage.key for stage in planned.stages if self.store.find(stage) is not None}
        try:
            self._all(planned)
        except BaseException:  # stopped by hand, or a row failed: nothing is to go on unseen
            for row in self._running.values():
                with suppress(Away):
                    self.launcher.stop(row.handle, grace=self.grace)
            raise
        made = {stage.key for stage in planned.stages} - before
        record = self.study.run(self.store, self._reused(before), command=command, made=made)
        for chain in planned.chains:
            shutil.rmtree(self._folder(chain).path, ignore_errors=True)
        return record

    def _all(self, planned: Plan) -> None:
        waiting = list(planned.chains)
        while waiting or self._running:
            waiting = [chain for chain in waiting if not self._begun(chain)]
            for name, row in list(self._running.items()):
                ended = self._seen(planned, row)
                if ended is not None:
                    del self._running[name]
                    waiting += [row.chain] if self._goes_on(row.chain, ended) else []
            if waiting or self._running:
                time.sleep(self.look)

    def _begun(self, chain: Chain) -> bool:
        """Begin a row if that is its turn; True also if there is nothing to do."""
        missing = self._missing(chain)
        if not missing:
            return True
        if any(missing & self._missing(row.chain) for row in self._running.values()):
            return False
        folder = self._folder(chain)
        folder.write(folder.recipe.name, yaml.safe_dump(self.study.recipe.plain(), sort_keys=False))
        folder.write_json(ROW, {"row": chain.name})
        at = folder.progress.stat().st_size if folder.progress.is_file() else 0
        store = str(self.store.root.resolve())
        command = [sys.executable, "-m", "moored.service.row", str(folder.path.resolve()), "--store", store]
        try:
            handle = self.launcher.start(command, folder.path, dict(os.environ))
        except NoSlot:
            return False
        except Away as error:
            if str(error) not in self._away:
                self._away.add(str(error))
                log.warning("row %s waits: %s", chain.name, error)
            return False
        self._running[chain.name] = _Running(chain, handle, at)
        return True

    def _seen(self, planned: Plan, row: _Running) -> Ended | None:
        """Tell what a process says; how it ended, if it has."""
        try:
            ended = self.launcher.poll(row.handle)
        except Away:
            return None
        except NoSlot:
            ended = Ended(code=STOPPED)
        for position, line in self._folder(row.chain).events(row.at):
            row.at = position
            self._tell(planned, line)
        return ended

    def _goes_on(self, chain: Chain, ended: Ended) -> bool:
        """Whether a row that has ended is to begin again.

        Raises:
            StudyError: it failed.
        """
        if not self._missing(chain):
            return False
        if ended.code == STOPPED:
            return True
        folder = self._folder(chain)
        failure = folder.read_json("failure.json")
        if ended.why or failure is not None:
            raise StudyError(f"row {chain.name!r} failed: {ended.why or (failure or {})['detail']}")
        self._deaths[chain.name] = self._deaths.get(chain.name, 0) + 1
        if self._deaths[chain.name] >= MOST_DEATHS:
            raise StudyError(
                f"the process of row {chain.name!r} ended {MOST_DEATHS} times without a word, the last time with exit "
                f"status {ended.code}; see {folder.log}"
            )
        return True

    def _tell(self, planned: Plan, line: Mapping[str, Any]) -> None:
        stage = next((stage for stage in planned.stages if stage.key == line.get("key")), None)
        if stage is None or line["state"] not in _TOLD:
            return
        what = f"loss {line['loss']:.3f}" if line.get("loss") is not None else ""
        self.watch(
            Event(
                stage=stage,
                index=line["stage"],
                count=line["stages"],
                row=line["row"],
                state=line["state"],
                done=line["done"],
                total=line["total"],
                what=what,
                seconds=line["seconds"],
            )
        )

    def _reused(self, before: set[str]) -> Watcher:
        """Tells of the stages that were there before the run, and of no others: those were told of already."""

        def watch(event: Event) -> None:
            if event.stage.key in before or event.state != "reused":
                self.watch(event)

        return watch

    def _missing(self, chain: Chain) -> set[str]:
        return {key for key, stage in chain.needed().items() if self.store.find(stage) is None}

    def _folder(self, chain: Chain) -> JobFolder:
        """Of a row of this very recipe: another one's process is not taken for it."""
        about = json.dumps([self.study.recipe.plain(), chain.name], sort_keys=True)
        return JobFolder(self.store.root / "rows" / hashlib.sha256(about.encode()).hexdigest()[:16])
