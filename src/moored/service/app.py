# SPDX-License-Identifier: Apache-2.0
"""The server as one ASGI app: this alone wires the parts together.

`uvicorn` runs it in `moored serve`; a test runs it in its own process.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from fastapi import FastAPI

import moored
from moored.service import audit_log, routes
from moored.service.answering import add_handlers
from moored.service.blobs import Blobs
from moored.service.database import Database
from moored.service.engines import engine_of
from moored.service.exchange import Exchanges
from moored.service.expiry import Sweeper
from moored.service.migrations import upgrade
from moored.service.parts import Parts
from moored.service.permits import Permits
from moored.service.policy_file import PolicyFile
from moored.service.registry import Refusal as Changed
from moored.service.registry import Registry
from moored.service.settings import ServerSettings


def open_parts(settings: ServerSettings) -> Parts:
    """Make a home ready, and open it.

    Args:
        settings: where it is.

    Raises:
        ConfigError: the policy or the database is not one that this version can keep.
    """
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    policy = PolicyFile(settings.policy_file)
    database = Database(settings.database_url)
    upgrade(database)
    engine = engine_of(settings)
    return Parts(
        settings=settings,
        database=database,
        policy=policy,
        blobs=Blobs(settings.blobs),
        registry=Registry(
            settings,
            database,
            policy,
            permits=Permits(settings),
            refused=partial(_write_down, settings.home),
            unload=engine.unload,
        ),
        engine=engine,
    )


def _write_down(home: Path, refusal: Changed) -> None:
    """Weights that are not those that passed, in the audit log."""
    details = {"project": refusal.project_id, "expected": refusal.expected, "found": refusal.found}
    audit_log.append(home, "server", "model.changed", refusal.model, details)


def create_app(settings: ServerSettings) -> FastAPI:
    """The server.

    Args:
        settings: of it.

    Raises:
        ConfigError: see `open_parts`.
    """
    parts = open_parts(settings)
    app = FastAPI(
        title="moored",
        version=moored.__version__,
        description="OpenAI's fine-tuning API on one's own machines, where nothing unsafe gets served.",
        lifespan=_life,
        docs_url=None,  # they would load their scripts from elsewhere
        redoc_url=None,
    )
    app.state.parts = parts
    app.add_middleware(Exchanges, metrics=parts.metrics)
    add_handlers(app)
    # The console's come last: a request for the API should not be held against thirty pages first.
    for found in sorted(iter_modules(routes.__path__), key=lambda found: found.name == "console"):
        # Their paths are whole. `include_router` would look through every router twice, for each request.
        app.router.routes += import_module(f"{routes.__name__}.{found.name}").router.routes
    return app


@asynccontextmanager
async def _life(app: FastAPI) -> AsyncIterator[None]:
    parts: Parts = app.state.parts
    sweeper = Sweeper(parts.database, parts.blobs)
    sweeper.start()
    yield
    sweeper.stop()
    parts.engine.close()
    parts.database.close()
