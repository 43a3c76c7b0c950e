# SPDX-License-Identifier: Apache-2.0
"""The provider's alignment, done before anybody asks for it: by a server that has nothing else to do."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select

from moored.service.database import Database, Job
from moored.service.folder import JobFolder
from moored.service.job_recipe import text_of
from moored.service.launchers.base import Away, NoSlot
from moored.service.pipeline import Pipeline
from moored.service.policy import Policy
from moored.service.starts import start_recipe

log = logging.getLogger("moored.service")


@dataclass(frozen=True, kw_only=True)
class Preparing:
    """Makes and measures the aligned starts of the policy, each in a folder of its own, as jobs are run.

    A job that comes meanwhile makes no second one: the store hands a stage to one process at a time.

    Args:
        database: whose jobs go first.
        pipeline: where processes run, and when to stop.
        policy: gives the policy as it is now.
        idle: time between two looks [s].
    """

    database: Database
    pipeline: Pipeline
    policy: Callable[[], Policy]
    idle: float = 5.0
    _tried: Counter[str] = field(default_factory=Counter, init=False)
    _told: set[str] = field(default_factory=set, init=False)

    def run(self) -> None:
        """Look for what is missing until the pipeline's `stopping` is set."""
        while not self.pipeline.stopping.is_set():
            try:
                self.look()
            except Exception:  # what nobody waits for yet must not end the worker
                log.exception("the aligned starts of the policy cannot be made ahead")
            self.pipeline.stopping.wait(self.idle)

    def look(self) -> None:
        """Start what is missing, if no job waits and there is room."""
        policy = self.policy()
        for name, offered in policy.models.items():
            if offered.align is not None and not self._jobs():
                with suppress(NoSlot, Away):
                    self._prepare(name, start_recipe(policy, name))

    def _jobs(self) -> bool:
        with self.database.reading() as session:
            return session.scalar(select(Job.id).where(Job.status.in_(("queued", "running"))).limit(1)) is not None

    def _prepare(self, name: str, tree: dict[str, Any]) -> None:
        text = text_of(tree)
        folder = JobFolder(self.pipeline.settings.home / "starts" / hashlib.sha256(text.encode()).hexdigest()[:16])
        if folder.finished() is not None or self.pipeline.launcher.find(folder.path) is not None:
            return
        tried = self._tried[folder.path.name]
        if tried and (failure := folder.read_json("failure.json")) is not None:
            self._complain(name, folder, failure["detail"])
        elif tried >= self.pipeline.most_deaths:
            self._complain(name, folder, f"its process ended {tried} times without a word")
        else:
            folder.write(folder.recipe.name, text)
            self.pipeline.launch(folder)
            self._tried[folder.path.name] += 1
            log.info("the aligned start of %s is made in %s", name, folder.path)

    def _complain(self, name: str, folder: JobFolder, why: str) -> None:
        """Once for each process: the next start of the server tries again."""
        if folder.path.name not in self._told:
            self._told.add(folder.path.name)
            log.error("the aligned start of %s cannot be made, and no job on it will train: %s", name, why)
