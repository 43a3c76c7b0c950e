# SPDX-License-Identifier: Apache-2.0
"""What a worker asks of the place where training runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

Handle = Mapping[str, Any]
"""What a launcher knows a process by, as plain JSON: it is good after a restart of whoever started it."""


LAUNCHER = "MOORED_FOUND_BY"
"""Environment variable of a process that is not found by its number on this machine: the launcher that finds it."""

STOPPED = 130
"""Exit status of a command that was asked to stop, and can be started again where it was."""

UNSEEN = 66
"""Exit status of a command whose machine does not see what it needs: its folder, or its program."""


class NoSlot(Exception):
    """All slots are taken; ask again later."""


class Away(Exception):
    """Whoever runs commands cannot be asked just now. What runs there may well go on; ask again later."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A process that does not run any more.

    Args:
        code: its exit status, below 0 a signal; None if only the one who started it could have known.
        why: what kept it from even beginning, for the operator; "" if it did begin.
    """

    code: int | None
    why: str = ""


@runtime_checkable
class Launcher(Protocol):
    """Runs commands. What comes of one is in its folder; a launcher only says whether it still runs."""

    def check(self) -> None:
        """Say at once if nothing can run here.

        Raises:
            ConfigError: what is missing, and what to do about it.
        """

    def start(self, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Handle:
        """Run a command, or give the handle of the one that already runs in this folder.

        Args:
            command: program and arguments.
            folder: of the job; it prints to `tuning.log` there. It works where this process does, and both
                see the folder by the same name.
            environment: all of it; on another machine, what of it is not of this machine alone.

        Raises:
            NoSlot: not now.
            Away: nobody knows whether it runs now. `find` will, and to start it again starts nothing twice.
        """

    def find(self, folder: Path) -> Handle | None:
        """What runs in this folder, or waits to, whoever started it; None if nothing does.

        Raises:
            Away: it cannot be asked now.
        """

    def poll(self, handle: Handle) -> Ended | None:
        """How it ended; None while it runs, or waits to.

        Raises:
            NoSlot: it waited for too long and was given up; start it again later.
            Away: it cannot be asked now.
        """

    def stop(self, handle: Handle, *, grace: float) -> None:
        """End it; returns when it has ended.

        Args:
            handle: of `start`, of this process or of one before it.
            grace: how long it has to write a checkpoint before it is killed [s]; 0 kills at once.

        Raises:
            Away: it cannot be asked now.
        """
