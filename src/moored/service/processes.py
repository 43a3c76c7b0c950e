# SPDX-License-Identifier: Apache-2.0
"""A process of this machine, told from a later one that got the same number."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

import psutil


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process by its number and when it began, which together no other ever has.

    Args:
        pid: its number.
        began: seconds since the machine was started, so that a clock which is set changes nothing.
    """

    pid: int
    began: float

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The process with this number; None if there is none."""
        try:
            return cls(pid=pid, began=_began(psutil.Process(pid)))
        except psutil.NoSuchProcess:
            return None

    @classmethod
    def this(cls) -> Process:
        """The process that asks."""
        return cls(pid=os.getpid(), began=_began(psutil.Process()))

    @classmethod
    def read(cls, value: dict[str, Any]) -> Process:
        """What `plain` gave."""
        return cls(pid=int(value["pid"]), began=float(value["began"]))

    def plain(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)

    @property
    def alive(self) -> bool:
        """Whether it still runs; one that ended and that nobody has asked after does not."""
        try:
            found = psutil.Process(self.pid)
            return abs(_began(found) - self.began) < 0.1 and found.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def signal(self, number: int) -> None:
        """Send a signal to it and to all that it started, if it is still there."""
        if not self.alive:
            return
        for each in (*psutil.Process(self.pid).children(recursive=True), psutil.Process(self.pid)):
            try:
                each.send_signal(number)
            except psutil.NoSuchProcess:
                continue


def _began(process: psutil.Process) -> float:
    return float(process.create_time() - psutil.boot_time())
