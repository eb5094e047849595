"""Which content the rows of the record need.

A row names content by its hash, and may come to name content that is there already. So it is written by `name_blob`,
which looks whether the content is still there, and content is deleted inside a block that writes: of the two, one comes
first.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from sqlalchemy import Column, Connection, delete, insert, select

from tunesmith.errors import StorageError
from tunesmith.record.database import Database
from tunesmith.record.store import Blob, Store
from tunesmith.record.tables import blobs, metadata

_log = logging.getLogger(__name__)


def name_blob(connection: Connection, store: Store, blob: Blob) -> None:
    """Make sure that a row of this block may name a blob; call it before the row is written.

    Raises:
        StorageError: the content was deleted a moment ago (`busy`); store it again.
    """
    if not store.exists(blob.sha256):
        raise StorageError(
            "The same content was deleted at this moment.",
            where="the file store",
            fix="Send it again.",
            code="busy",
        )
    if connection.scalar(select(blobs.c.sha256).where(blobs.c.sha256 == blob.sha256)) is None:
        connection.execute(insert(blobs).values(sha256=blob.sha256, bytes=blob.bytes, created_at=int(time.time())))


def free_blobs(database: Database, store: Store, digests: Collection[str]) -> None:
    """Delete those of some blobs that no row names any more. Call it after the rows are gone for good.

    What can't be deleted now is left to the next sweep: the rows' end was promised, that of the content wasn't.
    """
    waiting = list(digests)
    try:
        while waiting:
            with unneeded(database, waiting) as free:
                waiting = store.delete_some(list(free))
    except StorageError as error:
        _log.warning("content that nothing needs any more stays until the next sweep: %s", error)


def sweep_store(database: Database, store: Store) -> int:
    """Delete old content that no row names, and what killed processes left half-written; return how many.

    Raises:
        StorageError: the database or the store can't be read or written.
    """
    return store.sweep(lambda digests: unneeded(database, digests))


@contextmanager
def unneeded(database: Database, digests: Collection[str]) -> Iterator[Collection[str]]:
    """Yield those digests that no row names; nobody comes to name one before the block ends.

    Raises:
        StorageError: see `Database.write`.
    """
    # Most content is needed, and who only finds that out keeps nobody from writing.
    with database.read() as connection:
        free = _unnamed(connection, digests)
    if not free:
        yield free
        return
    with database.write() as connection:
        free = _unnamed(connection, free)
        connection.execute(delete(blobs).where(blobs.c.sha256.in_(free)))
        yield free


def _unnamed(connection: Connection, digests: Collection[str]) -> set[str]:
    """Return those digests that no row names in a connection's eyes."""
    needed: set[str] = set()
    for column in _naming_columns():
        needed.update(connection.scalars(select(column).where(column.in_(digests))))
    return set(digests) - needed


def _naming_columns() -> list[Column[str]]:
    """Return every column of every table that names a blob."""
    return [
        key.parent for table in metadata.sorted_tables for key in table.foreign_keys if key.column is blobs.c.sha256
    ]
