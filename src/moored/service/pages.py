# SPDX-License-Identifier: Apache-2.0
"""Cursor pages, as the client turns them: `after` is the id of the last item that it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from sqlalchemy import ColumnElement, Select, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from moored.service.problems import wrong

Order = Literal["asc", "desc"]


def page(
    session: Session,
    query: Select[Any],
    *,
    by: tuple[InstrumentedAttribute[Any], ...],
    identity: InstrumentedAttribute[str],
    shown: Callable[[Any], dict[str, Any]],
    after: str | None = None,
    limit: int = 20,
    order: Order = "desc",
) -> dict[str, Any]:
    """One page of a list.

    Args:
        session: where.
        query: selects one table's rows that the caller may see; a cursor outside of them is not found.
        by: columns that order the rows, together unique; for example `(File.created_at, File.id)`.
        identity: the column of the ids that are cursors.
        shown: a row as it is sent; has "id".
        after: the page begins after this item; None is the first page.
        limit: most items, at least 1.
        order: "desc" is newest first.

    Raises:
        ApiProblem: 400, no such item to begin after.
    """
    key: ColumnElement[Any] = tuple_(*by)
    if after is not None:
        start = session.execute(query.with_only_columns(*by).where(identity == after)).one_or_none()
        if start is None:
            raise wrong(f"No item with id '{after}' in this list to begin after.", "after", "invalid_value")
        beyond = tuple_(*start)
        query = query.where(key < beyond if order == "desc" else key > beyond)
    ordered = query.order_by(*(column.desc() if order == "desc" else column.asc() for column in by))
    rows = session.scalars(ordered.limit(limit + 1)).all()
    data = [shown(row) for row in rows[:limit]]
    return {
        "object": "list",
        "data": data,
        "has_more": len(rows) > limit,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }
