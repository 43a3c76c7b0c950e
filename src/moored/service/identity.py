# SPDX-License-Identifier: Apache-2.0
"""Who is calling: API keys, kept as hashes."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast, get_args

from sqlalchemy import Row, bindparam, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from moored.errors import ConfigError, require, unknown
from moored.service.clock import now
from moored.service.database import Database, Key, Project, Role
from moored.service.ids import new_id
from moored.service.policy import Limits
from moored.service.problems import ApiProblem
from moored.study.recipe import validated

PREFIX = "sk-moored-"

FIRST_PROJECT = "default"


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
    with database.writing() as session:
        return _add_key(session, project_id, role, name)


def first_key(database: Database) -> str | None:
    """An admin key of the project "default" for a server that has none; None if there is one that is not revoked.

    Args:
        database: where.
    """
    with database.writing() as session:
        admins = select(Key.id).where(Key.role == "admin", Key.revoked_at.is_(None))
        if session.scalar(admins.limit(1)) is not None:
            return None
        project = session.scalar(select(Project).where(Project.name == FIRST_PROJECT))
        project = project or _add_project(session, FIRST_PROJECT, {})
        return _add_key(session, project.id, "admin", "first")


def make_project(database: Database, name: str, limits: Mapping[str, Any] | None = None) -> Project:
    """A new project.

    Args:
        database: where.
        name: for people; no other project may have it.
        limits: what differs from the policy's limits, by name.

    Raises:
        ConfigError: the name is taken, empty or too long, or a limit is wrong.
    """
    require(0 < len(name.strip()) <= 128, "make_project", "name", "1 to 128 letters long", name)
    _check_limits(limits or {})
    try:
        with database.writing() as session:
            return _add_project(session, name, dict(limits or {}))
    except IntegrityError as error:
        raise ConfigError(f"there is a project {name!r} already") from error


def set_limits(database: Database, name: str, limits: Mapping[str, Any]) -> Project:
    """Change what a project may use.

    Args:
        database: where.
        name: of the project.
        limits: by name; None goes back to the policy's.

    Raises:
        ConfigError: no such project, or a limit is wrong.
    """
    with database.writing() as session:
        project = _named(session, name)
        kept = {key: value for key, value in (project.limits | dict(limits)).items() if value is not None}
        _check_limits(kept)
        project.limits = kept
        return project


def project_named(database: Database, name: str) -> Project:
    """The project with this name.

    Raises:
        ConfigError: there is none; lists the nearest.
    """
    with database.reading() as session:
        return _named(session, name)


def revoke(database: Database, key_id: str) -> Key:
    """End a key, at once and for good.

    Args:
        database: where.
        key_id: its id or its text.

    Raises:
        ConfigError: no such key.
    """
    given = Key.sha256 == _hashed(key_id) if key_id.startswith(PREFIX) else Key.id == key_id
    with database.writing() as session:
        key = session.scalar(select(Key).where(given))
        if key is None:
            raise ConfigError("no such key; `moored keys list` shows the ids of all")
        key.revoked_at = key.revoked_at or now()
        return key


def every_key(database: Database) -> list[tuple[Project, Key]]:
    """All keys with their projects, revoked ones too, oldest first."""
    with database.reading() as session:
        rows = session.execute(select(Project, Key).join(Key).order_by(Project.name, Key.created_at, Key.id))
        return [(project, key) for project, key in rows]


def every_project(database: Database) -> list[Project]:
    """All projects by name."""
    with database.reading() as session:
        return list(session.scalars(select(Project).order_by(Project.name)))


def _add_project(session: Session, name: str, limits: dict[str, Any]) -> Project:
    project = Project(id=new_id("proj"), name=name, created_at=now(), limits=limits)
    session.add(project)
    session.flush()
    return project


def _add_key(session: Session, project_id: str, role: Role, name: str) -> str:
    text = PREFIX + secrets.token_urlsafe(32)
    shown = f"{text[: len(PREFIX) + 3]}...{text[-2:]}"
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


def _named(session: Session, name: str) -> Project:
    project = session.scalar(select(Project).where(Project.name == name))
    if project is None:
        raise unknown("project", name, session.scalars(select(Project.name)))
    return project


def _check_limits(limits: Mapping[str, Any]) -> None:
    validated(Limits, dict(limits), "the limits of a project")


_WHOSE = (
    select(Key.id, Key.project_id, Key.role, Project.limits)
    .join(Project, Project.id == Key.project_id)
    .where(Key.sha256 == bindparam("sha256"), Key.revoked_at.is_(None))
)


def whose(database: Database, text: str) -> Caller | None:
    """The caller with this key; None if there is no such key, or no more."""
    found = known(database, text)
    return None if found is None else found[0]


def known(database: Database, text: str) -> tuple[Caller, dict[str, Any]] | None:
    """The caller with this key, and what their project's limits are where they differ from the policy's.

    Asked for every request, so that a revoked key and a new limit hold at once.

    Args:
        database: where.
        text: of the key.

    Returns:
        None if there is no such key, or no more.
    """
    with database.looking() as connection:
        found = connection.execute(_WHOSE, {"sha256": _hashed(text)}).one_or_none()
    return None if found is None else (_caller(found), found.limits)


def holder(database: Database, key_id: str) -> tuple[Caller, Project, Key] | None:
    """Whose key has this id, with its project and the key itself; None if there is no such key, or no more.

    Args:
        database: where.
        key_id: of a key; it opens nothing by itself.
    """
    with database.reading() as session:
        asked = select(Project, Key).join(Key).where(Key.id == key_id, Key.revoked_at.is_(None))
        found = session.execute(asked).one_or_none()
    return None if found is None else (_caller(found[1]), found[0], found[1])


def _caller(key: Key | Row[Any]) -> Caller:
    return Caller(key_id=key.id, project_id=key.project_id, role=cast(Role, key.role))


def _hashed(text: str) -> str:
    # A key holds 256 random bits: nothing is gained by a slow hash, and every request pays for it.
    return hashlib.sha256(text.encode()).hexdigest()
