# SPDX-License-Identifier: Apache-2.0
"""The tables, step by step: a new server gets all of them, an old one what it lacks."""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from alembic.util import CommandError

from moored.errors import ConfigError
from moored.service.database import Database

_LOCK = 0x6D6F6F72  # "moor"


def upgrade(database: Database) -> None:
    """Bring a database to the tables that this version of moored knows.

    Two processes may do so at once: one waits for the other.

    Args:
        database: of any age, or empty.

    Raises:
        ConfigError: it was made by a later version of moored.
    """
    config = Config()
    config.set_main_option("script_location", "moored.service:migrations")
    with database.engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise ConfigError(
                f"the database does not fit this version of moored ({error}); install a later one"
            ) from error
        connection.commit()
