"""SQLite as the record's database: write-ahead log, every commit forced to the disk, one writer at a time."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import URL, Connection, Engine, Pool, create_engine, event

from tunesmith.errors import StorageError, storage_errors
from tunesmith.record.database_errors import busy
from tunesmith.record.turns import ProcessTurn

_READERS = 16
_LONGEST_LOG_BYTES = 64 * 2**20
_LONGEST_POLL_SECONDS = 0.01


class SqliteBackend:
    """The engines for one file: one connection that writes, some that read.

    Args:
        file: where it is; it and its folder are created when first asked for.
        busy_seconds: how long a read waits while the file is being recovered, or for a free connection.
    """

    kind: Literal["sqlite"] = "sqlite"

    def __init__(self, file: Path, busy_seconds: float) -> None:
        self.file = file
        self._busy_seconds = busy_seconds
        self._turn = ProcessTurn(file.with_name(f"{file.name}.turn"))
        self._abandoned: list[Pool] = []
        self.reader = self._engine(_READERS, self._prepare_reader)
        self.writer = self._engine(1, self._prepare_writer)

    def begin_read(self, connection: Connection) -> None:
        """Begin to read."""
        _driver(connection).execute("BEGIN")

    def begin_write(self, connection: Connection, deadline: float, is_migration: bool) -> None:
        """Begin to write; wait for other processes until the deadline.

        Raises:
            StorageError: it didn't come to that (`busy`).
        """
        driver = _driver(connection)
        if is_migration:
            # A table that is made anew would empty those that point at it. `schema.upgrade` checks afterwards.
            driver.execute("PRAGMA foreign_keys = OFF")
        if not self._turn.acquire(deadline):
            raise busy()
        try:
            _when_free(driver, "BEGIN IMMEDIATE", deadline)
        finally:
            self._turn.release()

    def close(self) -> None:
        """Close all connections."""
        self.reader.dispose()
        self.writer.dispose()
        self._turn.close()

    def abandon(self) -> None:
        """Forget all connections without a word, after a fork; they stay open, as closing them would be a word."""
        self._abandoned += [self.reader.pool, self.writer.pool]
        self.reader.dispose(close=False)
        self.writer.dispose(close=False)
        self._turn.close()

    def _engine(self, connections: int, prepare: Any) -> Engine:
        engine = create_engine(
            URL.create("sqlite", database=str(self.file)),
            pool_size=connections,
            max_overflow=0,
            pool_timeout=self._busy_seconds,
            hide_parameters=True,
            connect_args={"isolation_level": None, "timeout": self._busy_seconds, "check_same_thread": False},
        )
        event.listen(engine, "do_connect", lambda *_: self._create())
        event.listen(engine, "connect", lambda driver, _: prepare(driver))
        return engine

    def _create(self) -> None:
        """Create the file where there is none, for nobody else to read: it holds secrets of webhooks.

        Raises:
            StorageError: it can't be created.
        """
        if self.file.exists():
            return
        with storage_errors(self.file.parent):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def _prepare_writer(self, driver: sqlite3.Connection) -> None:
        """Set what every connection needs.

        Raises:
            StorageError: the file system can't hold a write-ahead log.
        """
        mode = _when_free(driver, "PRAGMA journal_mode = WAL", time.monotonic() + self._busy_seconds)
        if mode != "wal":
            raise StorageError(
                "The record can't be kept on this file system: it has no shared memory.",
                where="the record",
                fix="Set TUNESMITH_HOME to a local folder, or TUNESMITH_DATABASE_URL to a PostgreSQL database.",
                code="not_writable",
            )
        driver.execute("PRAGMA synchronous = FULL")
        driver.execute("PRAGMA foreign_keys = ON")
        driver.execute("PRAGMA trusted_schema = OFF")
        driver.execute(f"PRAGMA journal_size_limit = {_LONGEST_LOG_BYTES}")

    def _prepare_reader(self, driver: sqlite3.Connection) -> None:
        self._prepare_writer(driver)
        driver.execute("PRAGMA query_only = ON")
        driver.execute(f"PRAGMA busy_timeout = {round(self._busy_seconds * 1000)}")


def _driver(connection: Connection) -> sqlite3.Connection:
    """Return the driver's own connection."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver


def _when_free(driver: sqlite3.Connection, statement: str, deadline: float) -> Any:
    """Execute a statement as soon as no other process is in the way, and return its first value.

    SQLite's own waiting sleeps for up to 100 ms at a time, and doesn't wait at all to change the journal.

    Raises:
        StorageError: the deadline passed (`busy`).
    """
    driver.execute("PRAGMA busy_timeout = 0")
    poll_seconds = 0.0005
    while True:
        try:
            row = driver.execute(statement).fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            if time.monotonic() >= deadline:
                raise busy() from error
            time.sleep(poll_seconds)
            poll_seconds = min(2 * poll_seconds, _LONGEST_POLL_SECONDS)
        else:
            return None if row is None else row[0]
