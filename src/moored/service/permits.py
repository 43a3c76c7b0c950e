# SPDX-License-Identifier: Apache-2.0
"""What signed report cards permit: a second word beside the database's, remembered until a card is touched."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Any

from sqlalchemy import Row

from moored.errors import MooredError
from moored.service.database import Model
from moored.service.report_card import CARD, lets_serve, read_card
from moored.service.settings import ServerSettings
from moored.service.signing import SigningKey

log = logging.getLogger("moored.service")

_Stamp = tuple[int, int, int, int]


class Permits:
    """Whether the card of a model's job lets its weights be served. Whoever can write only the database serves nothing.

    Args:
        settings: where the cards and the signing key are.
    """

    def __init__(self, settings: ServerSettings):
        self._settings = settings
        self._known: dict[str, tuple[_Stamp, str, bool]] = {}
        self._lock = threading.Lock()

    def __call__(self, model: Model | Row[Any]) -> bool:
        """Whether the card says so of these weights; a card that is missing, or not this server's, says nothing."""
        path = self._settings.job(model.job_id) / CARD
        try:
            stamp = _stamp(path)
            with self._lock:
                known = self._known.get(model.id)
            if known is not None and known[:2] == (stamp, model.sha256):
                return known[2]
            said = lets_serve(read_card(path), SigningKey.of(self._settings.home).public, model.sha256)
        except (MooredError, OSError) as error:
            log.error("%s is not served: its report card cannot be read (%s)", model.id, type(error).__name__)
            return False
        if not said:
            log.error("%s is not served: its report card does not say that it may be", model.id)
        with self._lock:
            self._known[model.id] = stamp, model.sha256, said
        return said


def _stamp(path: Path) -> _Stamp:
    found = os.stat(path)
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
