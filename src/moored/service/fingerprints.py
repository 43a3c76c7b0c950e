# SPDX-License-Identifier: Apache-2.0
"""What is in files, without reading those again that nobody has touched."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from moored.digest import identity_of, sha256_of
from moored.errors import CheckpointError

_SETTLED_NS = 2_000_000_000
"""A file that was changed so shortly before it was read may be changed again without a newer time [ns]."""

Stamp = tuple[int, ...]


class Fingerprints:
    """Hashes of files, remembered by size, inode and times. Safe to use from several threads."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Stamp, str]] = {}
        self._lock = threading.Lock()

    def sha256(self, file: Path) -> str:
        """Hex digest of a file.

        Args:
            file: read only if it may have changed since it was read last.

        Raises:
            CheckpointError: it changes while it is read.
        """
        known = self._remembered(file)
        if known is not None:
            return known
        with self._lock:  # several that ask for one file at once wait for one reading of it
            known = self._remembered(file)
            if known is not None:
                return known
            stamp, name = _stamp(file), str(file)
            moment, digest = time.time_ns(), sha256_of(file)
            if _stamp(file) != stamp:
                raise CheckpointError(f"{file} changes while it is read")
            if max(stamp[-2:]) + _SETTLED_NS < moment:
                self._known[name] = (stamp, digest)
            return digest

    def _remembered(self, file: Path) -> str | None:
        known = self._known.get(str(file))
        return known[1] if known is not None and known[0] == _stamp(file) else None

    def digest(self, folder: Path, start: str) -> str:
        """What binds a model to its bytes; see `digest`."""
        lines = [f"{path} {self.sha256(folder / path)}\n" for path in _listed(folder)]
        lines.append(f"start {identity_of(start, self.sha256)}\n")
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def digest(folder: Path, start: str) -> str:
    """The SHA-256 over the relative name and the bytes of every file of a model's folder, and over its start.

    Args:
        folder: of the adapter, or of whole weights.
        start: the folder or hub id of the weights under it. A folder counts by what it holds, a hub id by its name.

    Raises:
        CheckpointError: something that is no plain file, or changes while it is read.
        OSError: a file cannot be read.
    """
    return Fingerprints().digest(folder, start)


def _listed(folder: Path) -> list[str]:
    """Relative names of all files, in one order on every system."""
    return sorted(_below(str(folder), ""))


def _below(folder: str, prefix: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _below(entry.path, f"{prefix}{entry.name}/")
            elif entry.is_file(follow_symlinks=False):
                yield prefix + entry.name
            else:
                raise CheckpointError(f"{entry.path} is no plain file")


def _stamp(file: Path) -> Stamp:
    status = os.stat(file)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
