# SPDX-License-Identifier: Apache-2.0
"""The policy as the operator's file has it now."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from moored.errors import ConfigError
from moored.service.durable import write_whole
from moored.service.policy import Policy, default_policy

log = logging.getLogger("moored.service")


class PolicyFile:
    """Gives the policy; reads the file again when it has changed.

    A file that was changed into something wrong does not stop the server: the last policy that could be kept goes on,
    and `complaint` says what is wrong.

    Args:
        path: the TOML file; written from the default if it is not there.

    Raises:
        ConfigError: it is wrong.
    """

    def __init__(self, path: Path):
        self.path = path
        self.complaint = ""
        self._lock = threading.Lock()
        if not path.exists():
            write_whole(path, default_policy())
        self._seen = self._stamp()
        self._policy = Policy.load(path)

    def __call__(self) -> Policy:
        """The policy that holds now."""
        with self._lock:
            stamp = self._stamp()
            if stamp != self._seen:
                self._seen = stamp
                self._read()
            return self._policy

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> None:
        try:
            self._policy = Policy.load(self.path)
        except ConfigError as error:
            self.complaint = str(error)
            log.error("the policy was changed and is wrong; the one before it still holds: %s", error)
        else:
            self.complaint = ""
            log.warning("the policy was changed: %s, version %s", self._policy.name, self._policy.sha256[:12])
