# SPDX-License-Identifier: Apache-2.0
"""One process serves a home.

How fast keys ask (`quota.Rates`), who is signed in to the console, and which weights are in memory is known to that
process alone: a second one would let every key ask twice as fast. More answers come from a larger engine (`--engine`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from moored.errors import ConfigError


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """Be the one process that serves a home; the kernel ends that with the process, however it ends.

    Args:
        home: of the server; it is made if it is not there.

    Raises:
        ConfigError: another process serves it.
    """
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = FileLock(home / "serving.lock", mode=0o600)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise ConfigError(
            f"another process serves {home} already; one home has one server, which counts every key's requests. "
            "Stop that one, or give another --home"
        ) from error
    try:
        yield
    finally:
        lock.release()
