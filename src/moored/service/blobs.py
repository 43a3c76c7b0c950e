# SPDX-License-Identifier: Apache-2.0
"""Files under the hash of their content: whole or absent, stored once however often they were uploaded.

::

    blobs/
    ├── incoming/<random>      on its way; nothing refers to it
    └── ab/cdef...             the file whose SHA-256 begins with "ab"

A blob may be thrown away while the same content is just being uploaded again. So whoever keeps a blob makes it
fresh, and what is fresh is not thrown away, whether a row refers to it already or not.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from moored.digest import sha256_of
from moored.errors import CheckpointError
from moored.service.durable import sync

FRESH = 60
"""Age below which a blob is left alone [s]: longer than any transaction that is about to refer to it."""

ABANDONED = 60 * 60
"""Age above which something incoming, to which nothing was added, belongs to a process that died [s]."""


class TooLarge(Exception):
    """More bytes than may be stored."""

    def __init__(self, limit: int):
        super().__init__(f"more than {limit:,} bytes")
        self.limit = limit


class Incoming:
    """Bytes on their way into the store. Nothing is left of them unless `keep` is called.

    Args:
        file: the temporary file.
        limit: most bytes.
        home: the store.
    """

    def __init__(self, file: Path, limit: int, home: Blobs):
        self.path = file
        self.size = 0
        self._limit = limit
        self._home = home
        self._hash = hashlib.sha256()
        self._stream = os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")

    def write(self, data: bytes) -> None:
        """Add bytes.

        Raises:
            TooLarge: there would be more than the limit.
            OSError: the disk is full.
        """
        self.size += len(data)
        if self.size > self._limit:
            raise TooLarge(self._limit)
        self._hash.update(data)
        self._stream.write(data)

    def settle(self) -> str:
        """Bring everything to the disk; may take a while, so do it before a transaction.

        Returns:
            The SHA-256 in hex.
        """
        if not self._stream.closed:
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
        return self._hash.hexdigest()

    def keep(self) -> str:
        """Put the bytes in their place; call it in the transaction that adds the row which promises them.

        Returns:
            The SHA-256 in hex.
        """
        sha256 = self.settle()
        place = self._home.path(sha256)
        if not place.parent.exists():
            place.parent.mkdir(exist_ok=True)
            sync(self._home.root)
        os.utime(self.path)
        # Also where the same content is there already: that makes it fresh, in one step.
        os.replace(self.path, place)
        sync(place.parent)
        return sha256

    def drop(self) -> None:
        """Forget what was not kept."""
        self._stream.close()
        self.path.unlink(missing_ok=True)


class Blobs:
    """A store of blobs.

    Args:
        root: its folder; made if it is not there.
    """

    def __init__(self, root: Path):
        self.root = root
        self._incoming = root / "incoming"
        self._incoming.mkdir(parents=True, exist_ok=True, mode=0o700)

    @contextlib.contextmanager
    def incoming(self, limit: int) -> Iterator[Incoming]:
        """A place to write to; what is not kept when the block ends is gone.

        Args:
            limit: most bytes.
        """
        coming = Incoming(self._incoming / secrets.token_hex(16), limit, self)
        try:
            yield coming
        finally:
            coming.drop()

    def path(self, sha256: str) -> Path:
        """Where the bytes with this hash are, if they are there.

        Raises:
            ValueError: not a SHA-256 in hex.
        """
        if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            raise ValueError(f"{sha256!r} is not a SHA-256 in hex")
        return self.root / sha256[:2] / sha256[2:]

    def open(self, sha256: str, *, verify: bool = False) -> BinaryIO:
        """The bytes with this hash.

        Args:
            sha256: in hex.
            verify: read everything first, and refuse bytes that do not hash to it.

        Raises:
            FileNotFoundError: they are not here.
            CheckpointError: they were changed on the disk.
        """
        place = self.path(sha256)
        if verify and sha256_of(place) != sha256:
            raise CheckpointError(f"blob {sha256[:12]} was changed on the disk; restore it from a backup")
        return place.open("rb")

    def discard(self, sha256: str, wanted: Callable[[str], bool]) -> bool:
        """Throw bytes away unless something refers to them or soon may.

        Args:
            sha256: in hex.
            wanted: whether a row refers to these bytes; asked after they are out of the way.

        Returns:
            Whether they are gone.
        """
        place = self.path(sha256)
        going = self._incoming / f"{sha256}.{secrets.token_hex(8)}"
        try:
            if _age(place) < FRESH:
                return False
            place.rename(going)
        except FileNotFoundError:
            return True
        if _age(going) < FRESH or wanted(sha256):
            _put_back(going, place)
            return False
        going.unlink()
        return True

    def every(self) -> Iterator[str]:
        """The hashes of all that is stored."""
        for folder in sorted(self.root.glob("[0-9a-f][0-9a-f]")):
            for file in sorted(folder.iterdir()):
                yield folder.name + file.name

    def sweep(self, wanted: Callable[[str], bool]) -> int:
        """Throw away what nothing refers to, and what a process that died left behind.

        Args:
            wanted: see `discard`.

        Returns:
            How many files went.
        """
        gone = sum(self.discard(sha256, wanted) for sha256 in self.every() if not wanted(sha256))
        for file in self._incoming.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if _age(file) > ABANDONED:
                    self._recover(file, wanted)
                    gone += 1
        return gone

    def _recover(self, file: Path, wanted: Callable[[str], bool]) -> None:
        """A blob on its way out when the process died may be wanted after all; bytes on their way in never are."""
        sha256, dot, _ = file.name.partition(".")
        if dot and wanted(sha256):
            _put_back(file, self.path(sha256))
        else:
            file.unlink()


def _put_back(going: Path, place: Path) -> None:
    """Undo a rename, unless the same content is there again, and fresher."""
    with contextlib.suppress(FileExistsError):
        os.link(going, place)
    going.unlink()


def _age(file: Path) -> float:
    return time.time() - file.stat().st_mtime
