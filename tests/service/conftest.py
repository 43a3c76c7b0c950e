# SPDX-License-Identifier: Apache-2.0
"""A server of two projects, as a client on the same machine sees it."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Any

import pytest

import moored
from moored.service.settings import ServerSettings

_THREADED = (
    "attacks",
    "data",
    "defenses",
    "hf",
    "judges",
    "metrics",
    "ops",
    "repairs",
    "report",
    "service",
    "study",
    "tasks",
)


def _import_what_threads_import() -> None:
    """Import what servers and workers import in threads of their own, before one of them starts.

    The type checks of the tests compile every module anew from its tree, and CPython 3.11.7 fails at that now and then
    where two threads do it at a time (gh-106905: "AST constructor recursion depth mismatch").
    """
    for found in walk_packages(moored.__path__, "moored."):
        if found.name.split(".")[1] in _THREADED and not found.name.endswith(("__main__", ".env")):
            import_module(found.name)


_import_what_threads_import()


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server that runs.

    Args:
        base_url: for the client, ends in "/v1".
        key: of a user in the project "one".
        other_key: of a user in the project "two".
        admin_key: of an admin in the project "default".
        app: the app, with its parts at `app.state.parts`.
    """

    base_url: str
    key: str
    other_key: str
    admin_key: str
    app: Any
    clients: list[Any] = field(default_factory=list)

    @property
    def root(self) -> str:
        return self.base_url.removesuffix("/v1")

    @property
    def parts(self) -> Any:
        return self.app.state.parts

    def client(self, key: str | None = None) -> Any:
        """The real client of OpenAI; it does not try again, so that a test sees the first answer."""
        from openai import OpenAI

        client = OpenAI(base_url=self.base_url, api_key=key or self.key, max_retries=0, timeout=30)
        self.clients.append(client)
        return client


@pytest.fixture(scope="session")
def postgres() -> Iterator[Callable[[], str]]:
    """Makes empty PostgreSQL databases; gives their URLs. The server is Debian's, or any whose `initdb` is found."""
    pytest.importorskip("psycopg")
    found = shutil.which("initdb") or max(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")), default=None)
    if found is None:
        pytest.skip("there is no PostgreSQL")
    programs, root = Path(found).parent, os.geteuid() == 0
    user = {"user": "postgres"} if root else {}  # it does not run as root
    folder = Path(tempfile.mkdtemp(prefix="moored-pg-"))
    if root:
        shutil.chown(folder, "postgres")
    data = folder / "data"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder, **user}
    subprocess.run([programs / "initdb", "-D", data, "-U", "moored", "-A", "trust", "-N"], check=True, **quiet)
    words = ["-c", "fsync=off", "-c", "listen_addresses=", "-k", folder]
    process = subprocess.Popen([programs / "postgres", "-D", data, *words], **quiet)
    try:
        while not (folder / ".s.PGSQL.5432").exists():
            assert process.poll() is None
            time.sleep(0.05)
        yield partial(_new_database, f"postgresql+psycopg://moored@/{{}}?host={folder}")
    finally:
        process.send_signal(signal.SIGQUIT)  # which it takes for "at once"
        process.wait(60)
        shutil.rmtree(folder)


def _new_database(url: str) -> str:
    import sqlalchemy

    name = f"moored_{secrets.token_hex(6)}"
    engine = sqlalchemy.create_engine(url.format("postgres"), isolation_level="AUTOCOMMIT")
    for again in range(100):
        try:
            with engine.connect() as connection:
                connection.exec_driver_sql(f"CREATE DATABASE {name}")
            break
        except sqlalchemy.exc.OperationalError:  # it is still starting
            assert again < 99
            time.sleep(0.1)
    engine.dispose()
    return url.format(name)


@pytest.fixture
def settings(request, tmp_path) -> ServerSettings:
    """On SQLite, or as `parametrize("settings", ["sqlite", "postgres"], indirect=True)` says."""
    url = request.getfixturevalue("postgres")() if getattr(request, "param", "sqlite") == "postgres" else ""
    return ServerSettings(home=tmp_path / "home", database=url)


@pytest.fixture
def app(settings):
    """The app in this process, without a server around it."""
    from moored.service.app import create_app

    made = create_app(settings)
    yield made
    made.state.parts.database.close()


@pytest.fixture
def keys(app) -> tuple[str, str, str]:
    """Of a user in project "one", a user in project "two", and an admin."""
    from moored.service.identity import first_key, make_key, make_project

    database = app.state.parts.database
    admin = first_key(database)
    assert admin is not None
    return (*(make_key(database, make_project(database, name).id) for name in ("one", "two")), admin)


@pytest.fixture
def server(app, keys) -> Iterator[Running]:
    """The app behind uvicorn on a free loopback port."""
    import uvicorn

    from moored.service.listening import config_of

    own = uvicorn.Server(config_of(app, host="127.0.0.1", port=0))
    thread = threading.Thread(target=own.run, daemon=True)
    thread.start()
    while not own.started:
        assert thread.is_alive()
        threading.Event().wait(0.01)
    port = own.servers[0].sockets[0].getsockname()[1]
    key, other, admin = keys
    running = Running(base_url=f"http://127.0.0.1:{port}/v1", key=key, other_key=other, admin_key=admin, app=app)
    yield running
    for client in running.clients:
        client.close()
    own.should_exit = True
    thread.join(20)
    assert not thread.is_alive()
