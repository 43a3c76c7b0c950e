# SPDX-License-Identifier: Apache-2.0
"""How uvicorn is set up: strict about HTTP, silent about itself."""

from __future__ import annotations

from typing import Any

import uvicorn

GRACE_S = 20
"""Time that answers get to end when the server is stopped [s]."""


def config_of(app: Any, *, host: str, port: int) -> uvicorn.Config:
    """The settings of uvicorn.

    Args:
        app: of `create_app`.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
    """
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http="h11",  # refuses what two readers of one request could take for two requests
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=GRACE_S,
    )
