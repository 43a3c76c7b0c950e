# SPDX-License-Identifier: Apache-2.0
"""A server of two projects, as a client on the same machine sees it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from moored.service.settings import ServerSettings


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


@pytest.fixture
def settings(tmp_path) -> ServerSettings:
    return ServerSettings(home=tmp_path / "home")


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
