# SPDX-License-Identifier: Apache-2.0
"""The store: done means row and folder, nothing is half-written, two processes take turns."""

from __future__ import annotations

import errno
import hashlib
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from moored.errors import StudyError
from moored.study.migrations import MIGRATIONS, migrate
from moored.study.store import Store, naming_the_store


@dataclass
class Toy:
    """Something with a key."""

    name: str
    kind: str = "toy"
    parents: list[Any] = field(default_factory=list)

    @property
    def key(self) -> str:
        return hashlib.sha256(self.name.encode()).hexdigest()

    def parameters(self) -> dict[str, Any]:
        return {"name": self.name}


def do(store: Store, stage: Toy, text: str = "made") -> Path:
    with store.claim(stage) as work:
        store.started(stage)
        (work / "file").write_text(text)
        return store.finished(stage, 1.5).folder


def test_a_finished_stage_is_found(store: Store) -> None:
    assert store.find(Toy("a")) is None
    folder = do(store, Toy("a"))
    done = store.find(Toy("a"))
    assert done is not None
    assert (done.folder, done.seconds, done.attempts) == (folder, 1.5, 1)
    assert (folder / "file").read_text() == "made"
    assert not list((store.root / "work").iterdir())
    assert store.find(Toy("b")) is None


def test_a_stage_whose_folder_is_gone_is_not_done(store: Store) -> None:
    folder = do(store, Toy("a"))
    (folder / "file").unlink()
    (folder / "stage.json").unlink()
    folder.rmdir()
    assert store.find(Toy("a")) is None
    do(store, Toy("a"))
    done = store.find(Toy("a"))
    assert done is not None
    assert done.attempts == 1


def test_a_folder_without_its_row_is_replaced(store: Store) -> None:
    store.folder(Toy("a")).mkdir()
    (store.folder(Toy("a")) / "left").write_text("by a process that died")
    assert store.find(Toy("a")) is None
    folder = do(store, Toy("a"))
    assert {path.name for path in folder.iterdir()} == {"file", "stage.json"}


def test_a_stopped_attempt_keeps_its_work_and_is_counted(store: Store) -> None:
    def stopped() -> None:
        with store.claim(Toy("a")) as work:
            store.started(Toy("a"))
            (work / "checkpoint").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert store.find(Toy("a")) is None
    with store.claim(Toy("a")) as work:
        assert (work / "checkpoint").read_text() == "half"
        store.started(Toy("a"))
        assert store.finished(Toy("a"), 1.0).attempts == 2


def test_one_process_at_a_time(store: Store, tmp_path: Path) -> None:
    waited: list[float] = []

    def second() -> None:
        other = Store(store.root)
        with other.claim(Toy("a"), lambda: waited.append(time.monotonic())):
            waited.append(time.monotonic())
        other.close()

    with store.claim(Toy("a")):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.3)
        assert len(waited) == 1
    thread.join(10)
    assert len(waited) == 2
    assert waited[1] - waited[0] > 0.1


HOLD = """
import sys, time
sys.path.insert(0, sys.argv[2])
from test_study_store import Toy
from moored.study.store import Store
store = Store(sys.argv[1])
with store.claim(Toy("a")) as work:
    store.started(Toy("a"))
    (work / "half").write_text("x")
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_process_frees_its_stage(store: Store) -> None:
    command = [sys.executable, "-c", HOLD, str(store.root), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        process.kill()
    begin = time.monotonic()
    folder = do(store, Toy("a"))
    assert time.monotonic() - begin < 5
    assert (folder / "half").is_file()


def test_migrations_run_once_and_together(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    first = sqlite3.connect(path, isolation_level=None)
    second = sqlite3.connect(path, isolation_level=None)
    migrate(first)
    migrate(second)
    migrate(first)
    assert first.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    first.close()
    second.close()


def test_a_migration_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE half (x)")
        raise sqlite3.OperationalError("boom")

    monkeypatch.setattr("moored.study.migrations.MIGRATIONS", (*MIGRATIONS, broken))
    connection = sqlite3.connect(tmp_path / "store.sqlite", isolation_level=None)
    with pytest.raises(sqlite3.OperationalError):
        migrate(connection)
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == []
    assert connection.execute("PRAGMA user_version").fetchone() == (0,)
    connection.close()


def test_a_store_of_a_newer_version_is_refused(store: Store) -> None:
    connection = sqlite3.connect(store.root / "store.sqlite", isolation_level=None)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StudyError, match="newer moored"):
        Store(store.root)


def test_a_file_is_hashed_once(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    digest = hashlib.sha256(b"abc").hexdigest()
    assert store.sha256(path) == digest
    assert store._db.execute("SELECT COUNT(*) FROM fingerprints").fetchone() == (1,)
    assert store.sha256(path) == digest
    path.write_bytes(b"abcd")
    assert store.sha256(path) == hashlib.sha256(b"abcd").hexdigest()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space left for the store x"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "no space left for the store x"),
        (PermissionError(errno.EACCES, "Permission denied"), "cannot be used (Permission denied)"),
        (sqlite3.OperationalError("database or disk is full"), "no space left for the store x"),
        (sqlite3.DatabaseError("file is not a database"), "file is not a database"),
    ],
)
def test_system_errors_become_sentences(error: Exception, said: str) -> None:
    with pytest.raises(StudyError) as caught, naming_the_store(Path("x")):
        raise error
    assert said in str(caught.value)


def test_a_file_where_the_store_should_be(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("in the way")
    with pytest.raises(StudyError, match="choose another --store"):
        Store(tmp_path / "store")


def test_a_damaged_database(tmp_path: Path) -> None:
    (tmp_path / "store.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(StudyError, match="not a database"):
        Store(tmp_path)
