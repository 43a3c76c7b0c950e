# SPDX-License-Identifier: Apache-2.0
"""Which engine answers."""

from __future__ import annotations

from moored.service.question import Engine
from moored.service.settings import ServerSettings


def engine_of(settings: ServerSettings) -> Engine:
    """The engine that the settings ask for. No weights are read before the first question.

    Args:
        settings: of the server.
    """
    if settings.engine == "local":
        from moored.service.engine import LocalEngine

        return LocalEngine()
    from moored.service.vllm import VllmEngine

    return VllmEngine(settings.engine)
