# SPDX-License-Identifier: Apache-2.0
"""What a worker asks of the place where training runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

Handle = Mapping[str, Any]
"""What a launcher knows a process by, as plain JSON: it is good after a restart of whoever started it."""


class NoSlot(Exception):
    """All slots are taken; ask again later."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A process that does not run any more.

    Args:
        code: its exit status, below 0 a signal; None if only the one who started it could have known.
    """

    code: int | None


@runtime_checkable
class Launcher(Protocol):
    """Runs commands. What comes of one is in its folder; a launcher only says whether it still runs."""

    def start(self, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Handle:
        """Run a command, or give the handle of the one that already runs in this folder.

        Args:
            command: program and arguments.
            folder: of the job; it prints to `tuning.log` there. It works where this process does, and both
                see the folder by the same name.
            environment: all of it.

        Raises:
            NoSlot: not now.
        """

    def find(self, folder: Path) -> Handle | None:
        """What runs in this folder, whoever started it; None if nothing does."""

    def poll(self, handle: Handle) -> Ended | None:
        """How it ended; None while it runs."""

    def stop(self, handle: Handle, *, grace: float) -> None:
        """End it; returns when it has ended.

        Args:
            handle: of `start`, of this process or of one before it.
            grace: how long it has to write a checkpoint before it is killed [s]; 0 kills at once.
        """
