# SPDX-License-Identifier: Apache-2.0
"""Who is calling: API keys, kept as hashes."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import get_args

from sqlalchemy import select

from moored.errors import require
from moored.service.clock import now
from moored.service.database import Database, Key, Role
from moored.service.ids import new_id
from moored.service.problems import ApiProblem

PREFIX = "sk-moored-"


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Whom a key belongs to.

    Args:
        key_id: of the key; what rates are counted by and the audit log names.
        project_id: whose things it may see.
        role: what it may do.
    """

    key_id: str
    project_id: str
    role: Role

    def must_be(self, *roles: Role) -> None:
        """Refuse a caller without one of these roles; an admin has all.

        Raises:
            ApiProblem: 403.
        """
        if self.role not in (*roles, "admin"):
            raise ApiProblem(403, f"This needs a key of an {' or '.join(roles)}; this one is a {self.role}'s.")


def make_key(database: Database, project_id: str, *, role: Role = "user", name: str = "") -> str:
    """A new key of a project. Its text is returned this once; only its hash is kept.

    Args:
        database: where.
        project_id: a project that exists.
        role: what it may do.
        name: for people.
    """
    require(role in get_args(Role), "make_key", "role", f"one of {', '.join(get_args(Role))}", role)
    text = PREFIX + secrets.token_urlsafe(32)
    shown = f"{text[: len(PREFIX) + 3]}...{text[-2:]}"
    with database.writing() as session:
        session.add(
            Key(
                id=new_id("key"),
                project_id=project_id,
                name=name,
                role=role,
                sha256=_hashed(text),
                shown=shown,
                created_at=now(),
            )
        )
    return text


def whose(database: Database, text: str) -> Caller | None:
    """The caller with this key; None if there is no such key, or no more."""
    with database.reading() as session:
        key = session.scalar(select(Key).where(Key.sha256 == _hashed(text), Key.revoked_at.is_(None)))
    if key is None:
        return None
    role: Role = key.role  # type: ignore[assignment]
    return Caller(key_id=key.id, project_id=key.project_id, role=role)


def _hashed(text: str) -> str:
    # A key holds 256 random bits: nothing is gained by a slow hash, and every request pays for it.
    return hashlib.sha256(text.encode()).hexdigest()
