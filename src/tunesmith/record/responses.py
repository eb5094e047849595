"""Responses: what was asked and what was answered, so that the next request can go on from there.

A response keeps its own input and names the one before it; a conversation is the chain of them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, insert, literal, select

from tunesmith.record.database import Database
from tunesmith.record.tables import responses

#: How long a response is kept, as on the hosted service.
KEPT_SECONDS = 30 * 86_400
#: A conversation that is longer isn't read into memory: no model would read it.
MOST_LINKS = 1_000
MOST_BYTES = 64 << 20
#: Rows that are too old are deleted in blocks of this many, so that others may write meanwhile.
_BATCH = 200


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response with the input that was its own.

    Attributes:
        id: the id that the caller was told.
        created_at: when it began, in Unix seconds.
        project_id: whose it is.
        previous_id: the response that it goes on from; that one may be gone by now.
        links: how many responses its conversation has, itself included.
        bytes: size of that conversation.
        input: the items that it was asked, without those of the responses before it.
        response: the answer as it was sent.
    """

    id: str
    created_at: int
    project_id: str
    previous_id: str | None
    links: int
    bytes: int
    input: Sequence[Mapping[str, Any]]
    response: Mapping[str, Any]


class Responses:
    """The stored responses of all projects. One that is too old is gone, whether its row was deleted yet or not.

    Args:
        database: holds the rows.
        clock: says the time in Unix seconds.
    """

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def add(
        self,
        project_id: str,
        input_items: Sequence[Mapping[str, Any]],
        response: Mapping[str, Any],
        before: StoredResponse | None,
    ) -> StoredResponse:
        """Store a response; it is durable when this returns.

        Args:
            project_id: whose it is.
            input_items: its own input.
            response: as it was sent; its `id` and `created_at` are the row's.
            before: the response that it goes on from.

        Raises:
            StorageError: see `Database.retry`.
        """
        own_bytes = len(json.dumps([input_items, response]))
        stored = StoredResponse(
            id=response["id"],
            created_at=response["created_at"],
            project_id=project_id,
            previous_id=None if before is None else before.id,
            links=1 + (0 if before is None else before.links),
            bytes=own_bytes + (0 if before is None else before.bytes),
            input=input_items,
            response=response,
        )
        row = insert(responses).values({name: getattr(stored, name) for name in StoredResponse.__slots__})
        self._database.retry(lambda connection: connection.execute(row))
        return stored

    def get(self, project_id: str, response_id: str) -> StoredResponse | None:
        """Return a response of a project, None where it has none of that id."""
        wanted = select(responses).where(responses.c.id == response_id, *self._scope(project_id))
        with self._database.read() as connection:
            row = connection.execute(wanted).one_or_none()
        return None if row is None else _stored(row._mapping)

    def conversation(self, project_id: str, last: StoredResponse) -> list[StoredResponse]:
        """Return a response and those before it, the first one first, as far as they are still there."""
        own = (responses.c.id == last.id, *self._scope(project_id))
        chain = select(responses, literal(1).label("place")).where(*own).cte("chain", recursive=True)
        before = select(responses, chain.c.place + 1).where(
            responses.c.id == chain.c.previous_id, *self._scope(project_id)
        )
        chain = chain.union_all(before)
        with self._database.read() as connection:
            rows = connection.execute(select(chain).order_by(chain.c.place.desc())).mappings().all()
        return [_stored(row) for row in rows]

    def delete(self, project_id: str, response_id: str) -> bool:
        """Delete a response with its input; return whether there was one. Those that went on from it stay.

        Raises:
            StorageError: see `Database.retry`.
        """
        gone = delete(responses).where(responses.c.id == response_id, *self._scope(project_id))
        return self._database.retry(lambda connection: connection.execute(gone).rowcount > 0)

    def delete_expired(self) -> int:
        """Delete the responses that are too old; return how many they were.

        Raises:
            StorageError: see `Database.retry`.
        """
        old = select(responses.c.seq).where(responses.c.created_at <= self._oldest()).limit(_BATCH)
        gone = delete(responses).where(responses.c.seq.in_(old))
        count = 0
        while deleted := self._database.retry(lambda connection: connection.execute(gone).rowcount):
            count += deleted
        return count

    def _scope(self, project_id: str) -> tuple[Any, Any]:
        return responses.c.project_id == project_id, responses.c.created_at > self._oldest()

    def _oldest(self) -> int:
        return int(self._clock()) - KEPT_SECONDS


def _stored(row: Mapping[Any, Any]) -> StoredResponse:
    return StoredResponse(**{name: row[name] for name in StoredResponse.__slots__})
