# SPDX-License-Identifier: Apache-2.0
"""Where finished stages live: a folder of artifacts and a SQLite index of them.

::

    store/
    ├── store.sqlite                    one row per stage: what, from what, how long
    ├── artifacts/<kind>-<key[:16]>/    finished, never written again
    ├── work/<kind>-<key[:16]>/         unfinished; training resumes from the checkpoints in it
    ├── locks/<key[:16]>.lock           held by the process at work; the system frees it when the process dies
    └── rows/<hash>/                    of rows that launchers run, while they do (`moored.service.rows`)

A stage is done if its row says so and its folder is there. The folder is renamed into place whole.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from filelock import FileLock, Timeout

from moored.errors import StudyError
from moored.study.migrations import migrate

_BLOCK = 1 << 20


@runtime_checkable
class Keyed(Protocol):
    """What the store knows of a stage."""

    @property
    def kind(self) -> str:
        """For example "finetune"."""

    @property
    def key(self) -> str:
        """Content-addressed, 64 hex digits."""

    @property
    def parents(self) -> Sequence[Keyed]:
        """The stages whose artifacts it reads."""

    def parameters(self) -> dict[str, Any]:
        """What the key is made of, in plain JSON."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """A finished stage.

    Args:
        folder: its artifact.
        seconds: wall time of the attempt that finished it.
        attempts: 1, or more if it was stopped and resumed.
    """

    folder: Path
    seconds: float
    attempts: int


class Store:
    """A folder of finished stages; several processes may share it, on several machines if its file system can lock.

    Args:
        root: the folder; made if it does not exist.

    Raises:
        StudyError: the folder cannot be made or is not a store of this version.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        with naming_the_store(self.root):
            for folder in (self._artifacts, self._work, self._locks):
                folder.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.root / "store.sqlite", timeout=60, isolation_level=None)
            # Not WAL, which keeps its index in memory: machines that share a file system do not share that.
            self._db.execute("PRAGMA journal_mode = DELETE")
            migrate(self._db)

    @property
    def _artifacts(self) -> Path:
        return self.root / "artifacts"

    @property
    def _work(self) -> Path:
        return self.root / "work"

    @property
    def _locks(self) -> Path:
        return self.root / "locks"

    def close(self) -> None:
        """Close the database; the store object is not used afterwards."""
        self._db.close()

    def folder(self, stage: Keyed) -> Path:
        """Where the stage's artifact is, or will be."""
        return self._artifacts / _name(stage)

    def find(self, stage: Keyed) -> Done | None:
        """The finished stage, or None."""
        row = self._db.execute(
            "SELECT seconds, attempts FROM stages WHERE key = ? AND status = 'done'", (stage.key,)
        ).fetchone()
        folder = self.folder(stage)
        return Done(folder=folder, seconds=row[0], attempts=row[1]) if row and folder.is_dir() else None

    @contextmanager
    def claim(self, stage: Keyed, waiting: Callable[[], None] = lambda: None) -> Iterator[Path]:
        """The stage's work folder, for this process alone; waits while another process is at it.

        Args:
            stage: what to work on.
            waiting: called once if another process holds the stage.
        """
        lock = FileLock(self._locks / f"{stage.key[:16]}.lock")
        with naming_the_store(self.root):
            try:
                lock.acquire(timeout=0)
            except Timeout:
                waiting()
                lock.acquire()
        try:
            work = self._work / _name(stage)
            with naming_the_store(self.root):
                work.mkdir(exist_ok=True)
            yield work
        finally:
            lock.release()

    def started(self, stage: Keyed) -> None:
        """Note that an attempt begins."""
        with naming_the_store(self.root):
            self._db.execute(
                """
                INSERT INTO stages (key, kind, parameters, parents, status, started)
                VALUES (?, ?, ?, ?, 'running', ?)
                ON CONFLICT (key) DO UPDATE SET
                    attempts = CASE status WHEN 'done' THEN 1 ELSE attempts + 1 END,
                    status = 'running', started = excluded.started, seconds = NULL, finished = NULL
                """,
                (
                    stage.key,
                    stage.kind,
                    _json(stage.parameters()),
                    _json([p.key for p in stage.parents]),
                    _now(),
                ),
            )

    def finished(self, stage: Keyed, seconds: float) -> Done:
        """Turn the work folder into the artifact.

        Args:
            stage: claimed by this process.
            seconds: wall time of this attempt.
        """
        work, folder = self._work / _name(stage), self.folder(stage)
        with naming_the_store(self.root):
            about = {
                "key": stage.key,
                "kind": stage.kind,
                "parents": [parent.key for parent in stage.parents],
                "parameters": stage.parameters(),
                "seconds": seconds,
            }
            (work / "stage.json").write_text(json.dumps(about, indent=2, sort_keys=True), encoding="utf-8")
            if folder.exists():  # left by a process that died between the rename and the row
                shutil.rmtree(folder)
            work.replace(folder)
            self._db.execute(
                "UPDATE stages SET status = 'done', seconds = ?, finished = ? WHERE key = ?",
                (seconds, _now(), stage.key),
            )
        done = self.find(stage)
        if done is None:
            raise StudyError(f"the store {self.root} was changed by something else; run the same command again")
        return done

    def sha256(self, path: Path) -> str:
        """The SHA-256 of a file in hex, remembered by its size and modification time."""
        stat, name = path.stat(), str(path.resolve())
        row = self._db.execute(
            "SELECT sha256 FROM fingerprints WHERE path = ? AND size = ? AND mtime_ns = ?",
            (name, stat.st_size, stat.st_mtime_ns),
        ).fetchone()
        if row:
            return str(row[0])
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        with naming_the_store(self.root):
            self._db.execute(
                "INSERT OR REPLACE INTO fingerprints VALUES (?, ?, ?, ?)",
                (name, stat.st_size, stat.st_mtime_ns, digest.hexdigest()),
            )
        return digest.hexdigest()


@contextmanager
def naming_the_store(root: Path) -> Iterator[None]:
    """Turn a full disk, a missing right and a broken database into one sentence that says what to do.

    Raises:
        StudyError: instead of the system's error.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise no_space(root) from error
        raise StudyError(
            f"the store {root} cannot be used ({error.strerror or error}); choose another --store"
        ) from error
    except sqlite3.Error as error:
        if "full" in str(error):
            raise no_space(root) from error
        raise StudyError(
            f"{root / 'store.sqlite'} cannot be used ({error}); choose another --store or delete that folder"
        ) from error


def no_space(root: Path) -> StudyError:
    """The error for a full disk."""
    return StudyError(
        f"no space left for the store {root}; free some, or choose another --store, and run the "
        "same command again: what is finished is kept"
    )


def _name(stage: Keyed) -> str:
    return f"{stage.kind}-{stage.key[:16]}"


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
