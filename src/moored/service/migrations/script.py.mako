# SPDX-License-Identifier: Apache-2.0
"""${message}."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    """Step forward."""
    ${upgrades if upgrades else "pass"}
