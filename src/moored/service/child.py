# SPDX-License-Identifier: Apache-2.0
"""A process that belongs to this one: started again when it dies, ended when this one ends, however that ends.

`python -m moored.service.child PARENT MODULE ...` runs a module so that the kernel ends it with its parent.
"""

from __future__ import annotations

import ctypes
import logging
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence

GRACE_S = 30.0
"""Time between asking a process to end and ending it [s]."""

SHORTEST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Before a process that died is started again [s]; doubled each time that it dies early."""

_PR_SET_PDEATHSIG = 1

log = logging.getLogger("moored.service")


class Child:
    """A process of this one.

    Args:
        module: that it runs.
        arguments: of the module.
        environment: added to this process's own; for what must not be read off a list of processes.
    """

    def __init__(self, module: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None):
        self._command = [sys.executable, "-m", "moored.service.child", str(os.getpid()), module, *arguments]
        self._environment = {**os.environ, **(environment or {})}
        self._over = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        # One thread starts and watches: the kernel takes the thread that started a process for its parent.
        self._thread = threading.Thread(target=self._run, name=f"watch {module}", daemon=True)

    @property
    def pid(self) -> int | None:
        """Of the process that runs; None before the first."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start it, and again whenever it dies."""
        self._thread.start()

    def stop(self) -> None:
        """End it, and wait until it has ended."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        wait = SHORTEST_WAIT
        while not self._over.is_set():
            began = time.monotonic()
            self._process = subprocess.Popen(self._command, env=self._environment, stdin=subprocess.DEVNULL)
            while self._process.poll() is None and not self._over.wait(0.2):
                pass
            if self._over.is_set():
                break
            wait = SHORTEST_WAIT if time.monotonic() - began > LONGEST_WAIT else min(2 * wait, LONGEST_WAIT)
            log.error("the worker died (exit code %s); it is started again in %d s", self._process.returncode, wait)
            self._over.wait(wait)
        self._end()

    def _end(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _end_with(parent: int) -> None:
    """Have the kernel send this process a SIGTERM when its parent is gone, where the kernel can."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit("the process that started this one is gone")


if __name__ == "__main__":
    _end_with(int(sys.argv[1]))
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
