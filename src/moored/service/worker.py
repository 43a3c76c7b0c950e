# SPDX-License-Identifier: Apache-2.0
"""A worker: one job after the other, from the oldest that is due. As many workers as one likes share a database.

`python -m moored.service.worker --home H` works until it is told to end; what it trains goes on without it, and the
next worker finds it. With `--once` it ends when nothing is due.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from sqlalchemy.exc import OperationalError

from moored.service.claims import Claim, Interrupted, Lost, claim
from moored.service.database import Database
from moored.service.failures import reason
from moored.service.launchers.named import LauncherName, options_of
from moored.service.life import Status
from moored.service.pipeline import Pipeline
from moored.service.policy_file import PolicyFile
from moored.service.preparing import Preparing
from moored.service.settings import ServerSettings

IDLE = 1.0
"""Time between two looks for work [s]."""

EARLY: tuple[Status, ...] = ("validating_files",)
LATE: tuple[Status, ...] = ("queued", "running")

log = logging.getLogger("moored.service")


@dataclass(frozen=True, kw_only=True)
class Worker:
    """Takes jobs and works on them.

    Args:
        database: where they are.
        pipeline: what is done with one.
        idle: time between two looks for work [s].
    """

    database: Database
    pipeline: Pipeline
    idle: float = IDLE

    def run(self, *, once: bool = False) -> None:
        """Work until the pipeline's `stopping` is set, or, if `once`, until nothing is due."""
        stopping = self.pipeline.stopping
        while not stopping.is_set():
            try:
                taken = claim(self.database, self.pipeline.settings.lease, self.pipeline.statuses)
            except OperationalError:
                log.exception("the database cannot be read; it is tried again")
                taken = None
            busy = taken is not None and self.work(taken)
            if once and taken is None:
                return
            if not busy:
                stopping.wait(self.idle)

    def work(self, taken: Claim) -> bool:
        """Work on one job; whatever happens to it, this worker goes on.

        Returns:
            False if it had to be put back.
        """
        with taken.beating(), suppress(Lost):
            while True:
                try:
                    return self.pipeline.run(taken)
                except (Lost, OperationalError):
                    log.exception("job %s is left to another worker", taken.job_id)
                    return True
                except Exception as error:  # one job must not end the worker; the reason is the job's
                    log.exception("job %s failed", taken.job_id)
                    if self._failed(taken, error):
                        return True
        return True

    def _failed(self, taken: Claim, error: Exception) -> bool:
        """End a job with its reason; False if somebody wants it cancelled, which the pipeline has to do."""
        try:
            self.pipeline.fail(taken, reason(error))
        except Interrupted:
            return False
        except (Lost, OperationalError):
            log.exception("job %s is tried again when its lease ends", taken.job_id)
        return True


def workers(database: Database, pipeline: Pipeline) -> list[Worker]:
    """One that checks and screens, and one for each slot that trains: a long training keeps no upload waiting.

    Args:
        database: where jobs are.
        pipeline: what is done with one.
    """
    early = Worker(database=database, pipeline=replace(pipeline, statuses=EARLY))
    late = Worker(database=database, pipeline=replace(pipeline, statuses=LATE))
    return [early, *[late] * pipeline.settings.slots]


def main(arguments: Sequence[str] | None = None) -> int:
    """Work on the jobs of a server."""
    parser = argparse.ArgumentParser(prog="python -m moored.service.worker", description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="of the server")
    secret = os.environ.get("MOORED_DATABASE", "")  # not an argument: everybody on the machine sees those
    parser.add_argument("--database", default=secret, help="URL, if it is not in the home [default: $MOORED_DATABASE]")
    parser.add_argument("--launcher", default="local", choices=get_args(LauncherName))
    parser.add_argument("--launcher-option", action="append", default=[], help="what it is asked for, as name=value")
    parser.add_argument("--slots", type=int, default=1, help="jobs that train at a time")
    parser.add_argument("--lease", type=int, default=60, help="a worker not heard of for so long has lost its job [s]")
    parser.add_argument("--once", action="store_true", help="end when nothing is due")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    settings = ServerSettings(
        home=given.home,
        database=given.database,
        launcher=given.launcher,
        launcher_options=options_of(given.launcher_option),
        slots=given.slots,
        lease=given.lease,
    )
    from moored.service.wiring import launcher_of, seams_of

    database = Database(settings.database_url)
    pipeline = Pipeline(settings=settings, launcher=launcher_of(settings), seams=seams_of(settings, database))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: pipeline.stopping.set())
    if given.once:
        Worker(database=database, pipeline=pipeline).run(once=True)
    else:
        ahead = Preparing(database=database, pipeline=pipeline, policy=PolicyFile(settings.policy_file))
        serve([*workers(database, pipeline), ahead])
    database.close()
    return 0


def serve(several: Sequence[Worker | Preparing]) -> None:
    """Let workers work, each in its thread, until they are told to end."""
    threads = [threading.Thread(target=each.run, name=f"worker {i}") for i, each in enumerate(several)]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(0.5)  # a signal is heard only between two waits


if __name__ == "__main__":
    sys.exit(main())
