# SPDX-License-Identifier: Apache-2.0
"""Migrations of a store's database: one function each, applied once and in order, never edited afterwards."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from moored.errors import StudyError


def m001_stages(connection: sqlite3.Connection) -> None:
    """One row per stage, by its content-addressed key."""
    connection.execute(
        """
        CREATE TABLE stages (
            key        TEXT PRIMARY KEY,
            kind       TEXT NOT NULL,
            parameters TEXT NOT NULL,
            parents    TEXT NOT NULL,
            status     TEXT NOT NULL CHECK (status IN ('running', 'done')),
            attempts   INTEGER NOT NULL DEFAULT 1,
            seconds    REAL,
            started    TEXT NOT NULL,
            finished   TEXT
        ) STRICT
        """
    )


def m002_fingerprints(connection: sqlite3.Connection) -> None:
    """Hashes of model files, so that gigabytes are read once and not on every run."""
    connection.execute(
        """
        CREATE TABLE fingerprints (
            path     TEXT PRIMARY KEY,
            size     INTEGER NOT NULL,
            mtime_ns INTEGER NOT NULL,
            sha256   TEXT NOT NULL
        ) STRICT
        """
    )


MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (m001_stages, m002_fingerprints)
"""All migrations; the database's `user_version` counts those applied."""


def migrate(connection: sqlite3.Connection) -> None:
    """Bring a database up to date, all or nothing, also when two processes open it at once.

    Args:
        connection: in autocommit mode.

    Raises:
        StudyError: the database was made by a newer version of the package.
    """
    with connection:  # commits, or rolls back whatever ends it
        connection.execute("BEGIN IMMEDIATE")
        applied = int(connection.execute("PRAGMA user_version").fetchone()[0])
        if applied > len(MIGRATIONS):
            raise StudyError(
                f"the store was made by a newer moored (format {applied}, this one knows {len(MIGRATIONS)}); "
                "upgrade moored or choose another --store"
            )
        for migration in MIGRATIONS[applied:]:
            migration(connection)
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
