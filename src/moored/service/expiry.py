# SPDX-License-Identifier: Apache-2.0
"""What is over by its time: files that expire, uploads that nobody completed, bytes that nothing refers to."""

from __future__ import annotations

import logging
import threading

from sqlalchemy import select

from moored.service import files, uploads
from moored.service.blobs import Blobs
from moored.service.clock import now
from moored.service.database import Database, File, Upload

EVERY = 60.0
"""Time between two sweeps [s]."""

log = logging.getLogger("moored.service")


def sweep(database: Database, blobs: Blobs) -> int:
    """Delete what is over.

    Args:
        database: where rows go.
        blobs: where bytes go.

    Returns:
        How many files and uploads were over.
    """
    with database.writing() as session:
        expired = session.scalars(select(File).where(File.expires_at <= now())).all()
        for file in expired:
            session.delete(file)
        late = session.scalars(select(Upload).where(Upload.status == "pending", Upload.expires_at <= now())).all()
        for upload in late:
            upload.status = "expired"
            uploads.drop_parts(session, upload.id)
    blobs.sweep(files.promised(database))
    return len(expired) + len(late)


class Sweeper:
    """Sweeps in a thread of its own until it is stopped.

    Args:
        database: see `sweep`.
        blobs: see `sweep`.
    """

    def __init__(self, database: Database, blobs: Blobs):
        self._database = database
        self._blobs = blobs
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="moored-sweeper", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, after the sweep that may be going on."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                sweep(self._database, self._blobs)
            except Exception:
                log.exception("the sweep failed; it is tried again in %d s", EVERY)
            self._over.wait(EVERY)
