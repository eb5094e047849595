"""The whole record as one SQLite file, whatever database it is in, and back: what backups are made of.

Both databases keep the same tables with the same values, so a file that was made from PostgreSQL can become a SQLite
record and the other way round.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, func, insert, inspect, select

from tunesmith.errors import StorageError, storage_errors
from tunesmith.record.database import Database
from tunesmith.record.database_errors import database_errors
from tunesmith.record.tables import metadata, writers

_ROWS_AT_ONCE = 1000
#: What only means something to the processes that wrote it.
_LEFT_OUT = {writers.name}


def copy_database(database: Database, path: Path) -> None:
    """Write the record, as it is at one moment, to a SQLite file; nobody who reads or writes is kept waiting.

    Args:
        database: the record.
        path: where nothing is yet.

    Raises:
        StorageError: the record or the file can't be used, or the copy isn't whole.
    """
    with storage_errors(path), database_errors():
        if database.file is not None:
            _copy_file(database.file, path)
        else:
            _copy_rows(database, path)
        with closing(sqlite3.connect(path)) as copy:
            # One file, without a log beside it.
            copy.execute("PRAGMA journal_mode = DELETE")
            said = copy.execute("PRAGMA integrity_check").fetchone()[0]
            orphan = copy.execute("PRAGMA foreign_key_check").fetchone()
    if said != "ok" or orphan is not None:
        raise StorageError(
            "The record is damaged, so its copy is worth nothing.",
            where="the record",
            fix="Keep what you have, and restore an earlier backup: tunesmith restore.",
            code="record_damaged",
        )


def fill_database(copy: Path, database: Database) -> None:
    """Let a database that holds nothing become what a copy holds; it happens whole or not at all.

    Args:
        copy: a file of `copy_database`; it is brought up to date in its place.
        database: one without rows (see `holds_anything`).

    Raises:
        StorageError: the copy is of a newer version, or the database can't be written.
    """
    source = Database(f"sqlite:///{copy}")
    try:
        source.migrate()
        database.migrate()
        with source.read() as reading, database.write() as writing:
            for table in _tables():
                for rows in _rows(reading, table):
                    writing.execute(insert(table), rows)
            _count_on(writing)
    finally:
        source.close()


def holds_anything(database: Database) -> bool:
    """Whether a database holds any row; one without tables doesn't.

    Raises:
        StorageError: it can't be read.
    """
    with database.read() as connection:
        there = set(inspect(connection).get_table_names())
        found = [table for table in _tables() if table.name in there]
        return any(connection.execute(select(table).limit(1)).first() is not None for table in found)


def _tables() -> list[Table]:
    """Return all tables, those that others point at first."""
    return [table for table in metadata.sorted_tables if table.name not in _LEFT_OUT]


def _copy_file(file: Path, path: Path) -> None:
    # All pages in one step: they are of one moment, and nobody's writing makes it begin again.
    uri = f"{file.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True)) as source, closing(sqlite3.connect(path)) as copy:
        source.backup(copy, pages=-1)


def _copy_rows(database: Database, path: Path) -> None:
    copy = Database(f"sqlite:///{path}")
    try:
        copy.migrate()
        with database.read() as reading, copy.write() as writing:
            for table in _tables():
                for rows in _rows(reading, table):
                    writing.execute(insert(table), rows)
    finally:
        copy.close()
        for name in ("-wal", "-shm", ".turn"):
            path.with_name(path.name + name).unlink(missing_ok=True)


def _rows(connection: Connection, table: Table) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of a table, some at a time."""
    found = connection.execution_options(yield_per=_ROWS_AT_ONCE).execute(select(table))
    for part in found.mappings().partitions(_ROWS_AT_ONCE):
        yield [dict(row) for row in part]


def _count_on(connection: Connection) -> None:
    """Let PostgreSQL's counters go on behind the highest numbers; SQLite sees them itself."""
    if connection.dialect.name != "postgresql":
        return
    for table in _tables():
        if "seq" in table.columns:
            highest = connection.scalar(select(func.max(table.c.seq)))
            if highest:
                name = func.pg_get_serial_sequence(table.name, "seq")
                connection.execute(select(func.setval(name, highest)))
