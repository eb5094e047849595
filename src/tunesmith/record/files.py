"""Files: what users upload and what runs produce. A row names the content, several rows may name the same."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, insert, or_, select

from tunesmith.record.blobs import free_blobs, name_blob
from tunesmith.record.database import Database
from tunesmith.record.ids import new_id
from tunesmith.record.pages import Listed, Page, rows_of
from tunesmith.record.store import Blob, Store
from tunesmith.record.tables import files

#: Expired rows are deleted in blocks of this many, so that others may write meanwhile.
_BATCH = 200


@dataclass(frozen=True, slots=True)
class NewFile:
    """What a file is to be called, and whose it is.

    Attributes:
        project_id: the project it belongs to.
        filename: as users know it; never a path.
        purpose: what it is for (`fine-tune`, ...).
        expires_after_seconds: when it goes by itself; None keeps it.
        id: the id that it gets, where a request that is repeated must not make a second file; None draws one.
    """

    project_id: str
    filename: str
    purpose: str
    expires_after_seconds: int | None = None
    id: str | None = None


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file as the record knows it. Times are whole Unix seconds."""

    id: str
    created_at: int
    project_id: str
    filename: str
    purpose: str
    bytes: int
    sha256: str
    status: str
    status_details: str | None
    expires_at: int | None


class Files:
    """The files of all projects. An expired file is gone, whether its row was deleted yet or not.

    Args:
        database: holds the rows.
        store: holds the content.
        clock: says the time in Unix seconds.
    """

    def __init__(self, database: Database, store: Store, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._store = store
        self._clock = clock

    def create(self, new: NewFile, blob: Blob) -> FileRecord:
        """Add a file whose content is stored already; it is durable when this returns.

        A file that has the new one's id already is the answer to the same request, and returned as it is.

        Raises:
            StorageError: see `name_blob` and `Database.write`.
        """
        with self._database.write() as connection:
            if new.id is not None:
                here = and_(files.c.id == new.id, self._scope(new.project_id))
                row = connection.execute(select(files).where(here)).one_or_none()
                if row is not None:
                    return _record(row)
            return self.add(connection, new, blob)

    def add(self, connection: Connection, new: NewFile, blob: Blob) -> FileRecord:
        """Add a file as part of a larger write.

        Raises:
            StorageError: see `name_blob`.
        """
        now = int(self._clock())
        record = FileRecord(
            id=new.id or new_id("file-"),
            created_at=now,
            project_id=new.project_id,
            filename=new.filename,
            purpose=new.purpose,
            bytes=blob.bytes,
            sha256=blob.sha256,
            status="processed",
            status_details=None,
            expires_at=None if new.expires_after_seconds is None else now + new.expires_after_seconds,
        )
        name_blob(connection, self._store, blob)
        connection.execute(insert(files).values(asdict(record)))
        return record

    def get(self, project_id: str, file_id: str) -> FileRecord | None:
        """Return a file of a project, None where it has none of that id."""
        with self._database.read() as connection:
            return self.here(connection, project_id, file_id)

    def here(self, connection: Connection, project_id: str, file_id: str) -> FileRecord | None:
        """Return a file as part of a larger read or write; see `get`."""
        row = connection.execute(select(files).where(files.c.id == file_id, self._scope(project_id))).one_or_none()
        return None if row is None else _record(row)

    def list(self, project_id: str, page: Page, *, purpose: str | None = None) -> Listed[FileRecord]:
        """Return a page of a project's files.

        Raises:
            RequestError: there is no such cursor.
        """
        filters = [] if purpose is None else [files.c.purpose == purpose]
        with self._database.read() as connection:
            found = rows_of(connection, files, page, self._scope(project_id), *filters)
        return Listed(tuple(_record(row) for row in found.items), found.has_more)

    def delete(self, project_id: str, file_id: str) -> bool:
        """Delete a file; its content goes too, unless something else needs it. Return whether there was one.

        Raises:
            StorageError: see `Database.write`.
        """
        with self._database.write() as connection:
            where = and_(files.c.id == file_id, self._scope(project_id))
            sha256 = connection.scalar(delete(files).where(where).returning(files.c.sha256))
        if sha256 is None:
            return False
        free_blobs(self._database, self._store, [sha256])
        return True

    def delete_expired(self) -> int:
        """Delete the rows and the content of files whose time is over; return how many.

        Raises:
            StorageError: see `Database.write`.
        """
        count = 0
        while True:
            with self._database.write() as connection:
                due = select(files.c.seq).where(files.c.expires_at <= int(self._clock())).limit(_BATCH)
                digests = connection.scalars(delete(files).where(files.c.seq.in_(due)).returning(files.c.sha256)).all()
            if not digests:
                return count
            free_blobs(self._database, self._store, set(digests))
            count += len(digests)

    def _scope(self, project_id: str) -> ColumnElement[bool]:
        """Return the condition for what a project can see now."""
        lives = or_(files.c.expires_at.is_(None), files.c.expires_at > int(self._clock()))
        return and_(files.c.project_id == project_id, lives)


def _record(row: Row[Any]) -> FileRecord:
    return FileRecord(**{name: row._mapping[name] for name in FileRecord.__slots__})
