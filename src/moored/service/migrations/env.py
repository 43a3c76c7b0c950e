# SPDX-License-Identifier: Apache-2.0
"""What Alembic runs; `upgrade` of this package gives it the connection."""

from __future__ import annotations

from alembic import context

from moored.service.database import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
    transactional_ddl=True,
)
context.run_migrations()
