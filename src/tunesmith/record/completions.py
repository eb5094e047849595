"""Stored chat completions: what was asked with `store`, what came of it, and the pairs that find it again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, exists, insert, select

from tunesmith.record.database import Database
from tunesmith.record.pages import Listed, Page, rows_of
from tunesmith.record.tables import completion_messages, completion_metadata, completions


@dataclass(frozen=True, slots=True)
class NewCompletion:
    """What is to be stored.

    Attributes:
        id: the id that the caller was told.
        created_at: when it began, in Unix seconds.
        project_id: whose it is.
        model: the model that answered, as the caller knows it.
        request_id: of the request that asked for it.
        messages: the prompt's messages as they were sent.
        request: the settings that lists show.
        response: the answer as it was sent.
        metadata: pairs to find it by.
    """

    id: str
    created_at: int
    project_id: str
    model: str
    request_id: str
    messages: Sequence[Mapping[str, Any]]
    request: Mapping[str, Any]
    response: Mapping[str, Any]
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class StoredCompletion:
    """A completion as the record has it; its messages are listed by themselves."""

    id: str
    created_at: int
    model: str
    request_id: str
    request: dict[str, Any]
    response: dict[str, Any]
    metadata: dict[str, str]


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """One message of a stored completion's prompt, as it was sent."""

    id: str
    message: dict[str, Any]


class Completions:
    """The stored completions of all projects."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, new: NewCompletion) -> None:
        """Store a completion; it is durable when this returns.

        Raises:
            StorageError: see `Database.retry`.
        """
        self._database.retry(lambda connection: _add(connection, new))

    def get(self, project_id: str, completion_id: str) -> StoredCompletion | None:
        """Return a completion of a project, None where it has none of that id."""
        with self._database.read() as connection:
            return _get(connection, project_id, completion_id)

    def list(
        self,
        project_id: str,
        page: Page,
        *,
        model: str | None = None,
        metadata: Mapping[str, str] | None = None,
        without_metadata: bool = False,
    ) -> Listed[StoredCompletion]:
        """Return a page of a project's completions: all, or those of a model, with these pairs, or without any.

        Raises:
            RequestError: there is no such cursor.
        """
        filters = [] if model is None else [completions.c.model == model]
        filters += [_has_pair(key, value) for key, value in (metadata or {}).items()]
        if without_metadata:
            filters.append(~exists().where(completion_metadata.c.completion_id == completions.c.id))
        with self._database.read() as connection:
            found = rows_of(connection, completions, page, completions.c.project_id == project_id, *filters)
            return Listed(tuple(_stored(connection, found.items)), found.has_more)

    def messages(self, project_id: str, completion_id: str, page: Page) -> Listed[StoredMessage] | None:
        """Return a page of a completion's messages, None where the project has no completion of that id.

        Raises:
            RequestError: there is no such cursor.
        """
        with self._database.read() as connection:
            if connection.scalar(select(completions.c.seq).where(_of(project_id, completion_id))) is None:
                return None
            own = completion_messages.c.completion_id == completion_id
            found = rows_of(connection, completion_messages, page, own)
        return Listed(tuple(StoredMessage(row.id, row.message) for row in found.items), found.has_more)

    def set_metadata(self, project_id: str, completion_id: str, metadata: Mapping[str, str]) -> StoredCompletion | None:
        """Give a completion other pairs instead of those that it had; return it, None where there is none.

        Raises:
            StorageError: see `Database.retry`.
        """

        def change(connection: Connection) -> StoredCompletion | None:
            if connection.scalar(select(completions.c.seq).where(_of(project_id, completion_id))) is None:
                return None
            connection.execute(delete(completion_metadata).where(completion_metadata.c.completion_id == completion_id))
            _add_pairs(connection, completion_id, metadata)
            return _get(connection, project_id, completion_id)

        return self._database.retry(change)

    def delete(self, project_id: str, completion_id: str) -> bool:
        """Delete a completion, with its messages and pairs; return whether there was one.

        Raises:
            StorageError: see `Database.retry`.
        """
        gone = delete(completions).where(_of(project_id, completion_id))
        return self._database.retry(lambda connection: connection.execute(gone).rowcount > 0)


def _add(connection: Connection, new: NewCompletion) -> None:
    connection.execute(
        insert(completions).values(
            id=new.id,
            created_at=new.created_at,
            project_id=new.project_id,
            model=new.model,
            request_id=new.request_id,
            request=new.request,
            response=new.response,
        )
    )
    rows = [
        {
            "id": f"{new.id}-{index}",
            "created_at": new.created_at,
            "completion_id": new.id,
            "message": message,
        }
        for index, message in enumerate(new.messages)
    ]
    connection.execute(insert(completion_messages), rows)
    _add_pairs(connection, new.id, new.metadata)


def _add_pairs(connection: Connection, completion_id: str, metadata: Mapping[str, str]) -> None:
    if metadata:
        rows = [{"completion_id": completion_id, "key": key, "value": value} for key, value in metadata.items()]
        connection.execute(insert(completion_metadata), rows)


def _get(connection: Connection, project_id: str, completion_id: str) -> StoredCompletion | None:
    rows = connection.execute(select(completions).where(_of(project_id, completion_id))).all()
    return next(_stored(connection, rows), None)


def _stored(connection: Connection, rows: Sequence[Row[Any]]) -> Iterator[StoredCompletion]:
    """Yield rows as completions, with their pairs."""
    pairs: dict[str, dict[str, str]] = {row.id: {} for row in rows}
    wanted = select(completion_metadata).where(completion_metadata.c.completion_id.in_(pairs))
    for pair in connection.execute(wanted.order_by(completion_metadata.c.key)):
        pairs[pair.completion_id][pair.key] = pair.value
    for row in rows:
        yield StoredCompletion(
            row.id, row.created_at, row.model, row.request_id, row.request, row.response, pairs[row.id]
        )


def _of(project_id: str, completion_id: str) -> ColumnElement[bool]:
    return and_(completions.c.project_id == project_id, completions.c.id == completion_id)


def _has_pair(key: str, value: str) -> ColumnElement[bool]:
    pair = and_(
        completion_metadata.c.completion_id == completions.c.id,
        completion_metadata.c.key == key,
        completion_metadata.c.value == value,
    )
    return exists().where(pair)
