"""Pages of lists: rows in the order of their `seq`, from behind a cursor on.

A cursor is the id of the last row that a caller has seen. Rows that come or go meanwhile make no page skip or repeat
another row; a cursor that is gone itself is refused, since nobody knows where it stood.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import ColumnElement, Connection, Row, Table, select

from tunesmith.errors import RequestError
from tunesmith.record.column_types import is_storable

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Page:
    """Which rows of a list are asked for.

    Attributes:
        limit: at most so many.
        after: the id of the row that comes before them; None starts at the beginning.
        is_descending: whether the newest come first.
    """

    limit: int = 20
    after: str | None = None
    is_descending: bool = True


@dataclass(frozen=True, slots=True)
class Listed(Generic[_T]):
    """A page of a list, and whether more follow."""

    items: tuple[_T, ...]
    has_more: bool


def rows_of(
    connection: Connection, table: Table, page: Page, scope: ColumnElement[bool], *filters: ColumnElement[bool]
) -> Listed[Row[Any]]:
    """Return a page of a table's rows.

    Args:
        connection: to read with.
        table: has the columns `seq` and `id`.
        page: which rows.
        scope: whose rows: a cursor outside counts as unknown.
        filters: which of them; a cursor may be a row that they leave out.

    Raises:
        RequestError: there is no such cursor (`invalid_cursor`).
    """
    asked = select(table).where(scope, *filters)
    if page.after is not None:
        here = select(table.c.seq).where(table.c.id == page.after, scope)
        seq = connection.scalar(here) if is_storable(page.after) else None
        if seq is None:
            raise RequestError(
                "Invalid 'after': there is no such object. Start again from the first page.",
                code="invalid_cursor",
                param="after",
            )
        asked = asked.where(table.c.seq < seq if page.is_descending else table.c.seq > seq)
    order = table.c.seq.desc() if page.is_descending else table.c.seq.asc()
    # One more than asked for tells whether there are more.
    rows = connection.execute(asked.order_by(order).limit(page.limit + 1)).all()
    return Listed(tuple(rows[: page.limit]), len(rows) > page.limit)
