# SPDX-License-Identifier: Apache-2.0
"""Write the next revision from what `database.py` has and the revisions so far lack; then read it before you commit it.

`python -m moored.service.migrations tables "The tables"`
"""

from __future__ import annotations

import sys
import tempfile
from itertools import groupby
from pathlib import Path

from alembic.autogenerate import produce_migrations, render_python_code
from alembic.migration import MigrationContext
from alembic.operations import ops

from moored.service.database import Base, Database
from moored.service.migrations import upgrade

_VERSIONS = Path(__file__).parent / "versions"
_TEXT = '''# SPDX-License-Identifier: Apache-2.0
"""{message}."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = {revision!r}
down_revision = {down!r}


def upgrade() -> None:
    """Step forward."""
{calls}

{functions}
'''


def _code(steps: list[ops.MigrateOperation]) -> str:
    lines = render_python_code(ops.UpgradeOps(steps), render_as_batch=True).splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith("#")).lstrip()


def write(slug: str, message: str) -> Path:
    """Write the next revision.

    Args:
        slug: a word for its file's name.
        message: what it is about.
    """
    known = sorted(_VERSIONS.glob("r*.py"))
    revision = f"{len(known) + 1:04d}"
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{folder}/now.sqlite")
        upgrade(database)
        with database.engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"render_as_batch": True})
            steps = produce_migrations(context, Base.metadata).upgrade_ops
        database.close()
    assert steps is not None
    parts = {
        f"_{table}": _code(list(group))
        for table, group in groupby(steps.ops, key=lambda step: str(getattr(step, "table_name", "rest")))
    }
    file = _VERSIONS / f"r{revision}_{slug}.py"
    file.write_text(
        _TEXT.format(
            message=message,
            revision=revision,
            down=f"{len(known):04d}" if known else None,
            calls="\n".join(f"    {name}()" for name in parts),
            functions="\n\n".join(f"def {name}() -> None:\n    {body}\n" for name, body in parts.items()),
        ),
        encoding="utf-8",
    )
    return file


if __name__ == "__main__":
    print(write(*sys.argv[1:]))
