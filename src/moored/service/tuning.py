# SPDX-License-Identifier: Apache-2.0
"""The process of a job: runs the study of its recipe, and says in the job's folder how it goes.

`python -m moored.service.tuning <folder>` reads `recipe.yaml` there and nothing else of the server: no database, no
key. It may be killed at any time and started again; a stop (SIGTERM) leaves a checkpoint of the step that it was at.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moored.data.schema import Row
from moored.progress import Pause, Words
from moored.service.clock import now
from moored.service.failures import Diverged, reason
from moored.service.folder import PROCESS, JobFolder
from moored.service.launchers.base import LAUNCHER, STOPPED
from moored.service.launchers.elsewhere import ONE_DEVICE
from moored.service.processes import Process

if TYPE_CHECKING:
    from moored.report.record import Record
    from moored.study.plan import Chain, Plan
    from moored.study.stages import FinetuneStage
    from moored.study.store import Store
    from moored.study.study import Event, Study

FAILED = 1
DISK_FULL = 28
QUIET = 1.0
"""Least time between two lines that say only how far a stage is [s]."""


@dataclass
class Stop:
    """Whether the process was asked to stop."""

    asked: bool = False

    def listen(self) -> None:
        """From now on SIGTERM and SIGINT ask; a second one ends the process at once."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._heard)

    def _heard(self, number: int, frame: object) -> None:
        if self.asked:
            os._exit(STOPPED)
        self.asked = True


@dataclass
class Teller:
    """Appends what happens to `progress.jsonl`; a line is on the disk before the work goes on.

    Args:
        file: the progress.
        stop: asked between two steps.
        diverges: whether a training may go on with numbers that are not finite.
    """

    file: Path
    stop: Stop
    diverges: bool = False
    _last: float = field(default=-math.inf, init=False)
    _said: object = field(default=None, init=False)

    def watch(self, event: Event) -> None:
        """A `moored.study.study.Watcher`.

        Raises:
            Diverged: the numbers of the training are not finite.
            Pause: the process was asked to stop.
        """
        numbers = dict(event.what.numbers) if isinstance(event.what, Words) else {}
        if self._worth_saying(event, numbers):
            self.say(
                stage=event.index,
                stages=event.count,
                kind=event.stage.kind,
                key=event.stage.key,
                row=event.row,
                words=event.stage.words,
                state=event.state,
                done=event.done,
                total=event.total,
                seconds=round(event.seconds, 3),
                **{name: value if math.isfinite(value) else None for name, value in numbers.items()},
            )
        if not self.diverges and not all(math.isfinite(value) for value in numbers.values()):
            raise Diverged(f"the training diverged at step {event.done}: its numbers are not finite any more")
        if self.stop.asked:
            raise Pause

    def say(self, **line: Any) -> None:
        """Append a line."""
        data = json.dumps({"at": now(), **line}, ensure_ascii=False).encode() + b"\n"
        with self.file.open("ab+") as file:
            if file.tell() and not _ends_whole(file.name):
                data = b"\n" + data  # a killed process was in the middle of a line
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._last = time.monotonic()

    def _worth_saying(self, event: Event, numbers: dict[str, int | float]) -> bool:
        if event.state != "working" or event.done == event.total:
            return True
        news = numbers and self._said is not event.what
        self._said = event.what
        return bool(news) or time.monotonic() - self._last >= QUIET


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study of a job's folder to its end.

    Returns:
        0: `record.json` is there. 1: `failure.json` is. 130: it was stopped. 28: not even that could be written.
    """
    parser = argparse.ArgumentParser(prog="python -m moored.service.tuning", description=__doc__)
    parser.add_argument("folder", type=Path, help="of the job; holds recipe.yaml")
    parser.add_argument("--store", type=Path, help="of finished stages [default: the store of the server's home]")
    given = parser.parse_args(arguments)
    folder = JobFolder(given.folder.resolve())
    store = (given.store or folder.path.parent.parent / "store").resolve()
    return alone(folder, lambda: _work(folder, store))


def alone(folder: JobFolder, work: Callable[[], int]) -> int:
    """Work in a folder while no other process does.

    Args:
        folder: of the job.
        work: gives the exit status.
    """
    from filelock import FileLock

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.exit(f"{folder.path} is for one process, and torchrun has started {os.environ['WORLD_SIZE']}: {ONE_DEVICE}")
    with FileLock(folder.lock):  # one that a dead worker left behind may still be at it
        if LAUNCHER not in os.environ:
            folder.write_json(PROCESS, Process.this().plain())
        return work()


def _work(folder: JobFolder, store: Path) -> int:
    stop = Stop()
    stop.listen()
    if folder.finished() is not None:
        return 0
    return ended(folder, lambda: run(folder, store, stop))


def ended(folder: JobFolder, work: Callable[[], None]) -> int:
    """Do the work of a process; if it fails, say in its folder why.

    Args:
        folder: of the job.
        work: raises `Pause` if it was asked to stop.

    Returns:
        The exit status.
    """
    folder.forget("failure.json")
    try:
        work()
    except Pause:
        return STOPPED
    except Exception as error:  # noqa: BLE001 - the end of the process: whatever it was, the job must get a reason
        traceback.print_exc()
        return _failed(folder, error)
    return 0


def run(folder: JobFolder, store: Path, stop: Stop) -> None:
    """Run the study, and write `made.json` and then `record.json`.

    Args:
        folder: of the job.
        store: of finished stages.
        stop: asked between two steps.

    Raises:
        Pause: asked to stop.
        MooredError: the study failed.
    """
    from moored.study.recipe import Recipe
    from moored.study.store import Store
    from moored.study.study import Study

    teller = Teller(folder.progress, stop)
    study = Study(Recipe.load(folder.recipe))
    opened = Store(store)
    try:
        record = study.run(opened, teller.watch, command="moored run recipe.yaml")
        folder.write_json("made.json", _made(study, opened, record))
    finally:
        opened.close()
    folder.write("record.json", record.model_dump_json(indent=2) + "\n")
    teller.say(kind="study", state="finished")


def _made(study: Study, store: Store, record: Record) -> dict[str, Any]:
    """Where the models are, in the store or beside it, and what the fine-tuning of the first arm took."""
    from moored.study.stages import FinetuneStage, read_report

    planned = study.plan(store.sha256)
    tuned = [chain for chain in planned.chains if chain.arm is not None]
    if not tuned:
        return {"arms": {}}  # a start that is made ahead of the jobs
    arms = {chain.name: _model(chain, store) for chain in tuned}
    stage = next(stage for chain in tuned for stage in chain.stages if isinstance(stage, FinetuneStage))
    report = read_report(store.folder(stage))
    return {
        "arms": arms,
        "steps": report["steps"],
        "tokens": _tokens(planned, stage, store),
        "log": [line for line in report["log"] if "step" in line],
    }


def _model(chain: Chain, store: Store) -> dict[str, str]:
    """The folder of a chain's model and of its start, in the store if they are relative.

    Raises:
        Diverged: weights that are not finite.
    """
    from moored.study.stages import MODEL, FinetuneStage, Stage

    last = chain.stages[-1]
    stage = next(stage for stage in chain.stages if isinstance(stage, FinetuneStage))
    folder = store.folder(last) / MODEL
    _finite(folder)
    start = stage.start
    where = str((store.folder(start) / MODEL).relative_to(store.root)) if isinstance(start, Stage) else start.resolved
    return {"folder": str(folder.relative_to(store.root)), "start": where}


def _finite(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file

    for file in sorted(folder.glob("*.safetensors")):
        for name, weight in load_file(file).items():
            if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
                raise Diverged(f"the training diverged: {name} is not finite")


def _tokens(planned: Plan, stage: FinetuneStage, store: Store) -> int:
    """Tokens of the user's rows that were trained on, over all passes; of a preference, of both its rows."""
    from moored.data.chat import encode
    from moored.hf.loaders import load_tokenizer
    from moored.study.stages import start_path

    given = stage.given(store.folder)
    tokenizer = load_tokenizer(start_path(stage.start, store.folder))
    length = stage.training.max_length
    rows = [row for each in given for row in ((each,) if isinstance(each, Row) else (each.preferred, each.other))]
    once = sum(len(encode(tokenizer, row, max_length=length)["input_ids"]) for row in rows)
    return round(once * stage.training.passes(len(given)))


def _failed(folder: JobFolder, error: BaseException) -> int:
    """Leave the reason behind, if there is room for it."""
    try:
        folder.write_json("failure.json", reason(error))
    except OSError:
        return DISK_FULL
    return FAILED


def _ends_whole(name: str) -> bool:
    with open(name, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


if __name__ == "__main__":
    sys.exit(main())
