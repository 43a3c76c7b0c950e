# SPDX-License-Identifier: Apache-2.0
"""Cursor pages, as the client turns them: `after` is the id of the last item that it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, Integer, Label, Row, Select, bindparam, select, tuple_
from sqlalchemy.orm import InstrumentedAttribute

from moored.service.problems import wrong

Order = Literal["asc", "desc"]


class Listing:
    """Rows that are asked for page by page. It is made once: to build a statement takes longer than to ask it.

    Args:
        columns: that are read; see `columns_of`.
        where: which rows a caller may see, with `bindparam` for what differs; a cursor outside of them is not found.
        by: columns that order the rows, together unique; for example `(File.created_at, File.id)`.
        identity: the column of the ids that are cursors.
    """

    def __init__(
        self,
        columns: Sequence[Label[Any]],
        *where: ColumnElement[bool],
        by: tuple[InstrumentedAttribute[Any], ...],
        identity: InstrumentedAttribute[str],
    ):
        self._columns, self._where, self._by, self._identity = columns, where, by, identity
        self._cursor = select(*by).where(*where, identity == bindparam("after"))
        self._pages: dict[tuple[Order, bool], Select[Any]] = {}

    def only(self, *where: ColumnElement[bool]) -> Listing:
        """A list of fewer rows."""
        return Listing(self._columns, *self._where, *where, by=self._by, identity=self._identity)

    def page(
        self,
        connection: Connection,
        values: Mapping[str, Any],
        *,
        shown: Callable[[Row[Any]], dict[str, Any]],
        after: str | None = None,
        limit: int = 20,
        order: Order = "desc",
    ) -> dict[str, Any]:
        """One page of the list.

        Args:
            connection: where.
            values: of the parameters in `where`.
            shown: a row as it is sent; has "id".
            after: the page begins after this item; None is the first page.
            limit: most items, at least 1.
            order: "desc" is newest first.

        Raises:
            ApiProblem: 400, no such item to begin after.
        """
        asked: dict[str, Any] = {**values, "limit": limit + 1}
        if after is not None:
            start = connection.execute(self._cursor, {**values, "after": after}).one_or_none()
            if start is None:
                raise wrong(f"No item with id '{after}' in this list to begin after.", "after", "invalid_value")
            asked |= {f"after_{i}": value for i, value in enumerate(start)}
        rows = connection.execute(self._page(order, after is not None), asked).all()
        data = [shown(row) for row in rows[:limit]]
        return {
            "object": "list",
            "data": data,
            "has_more": len(rows) > limit,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
        }

    def _page(self, order: Order, begun: bool) -> Select[Any]:
        known = self._pages.get((order, begun))
        if known is None:
            known = self._pages[order, begun] = self._built(order, begun)
        return known

    def _built(self, order: Order, begun: bool) -> Select[Any]:
        where = list(self._where)
        if begun:
            here = tuple_(*self._by)
            start = tuple_(*(bindparam(f"after_{i}", type_=each.type) for i, each in enumerate(self._by)))
            where.append(here < start if order == "desc" else here > start)
        by = (each.desc() if order == "desc" else each.asc() for each in self._by)
        return select(*self._columns).where(*where).order_by(*by).limit(bindparam("limit", type_=Integer))
