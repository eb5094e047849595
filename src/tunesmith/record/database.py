"""The database: SQLite beside the files, or PostgreSQL by `TUNESMITH_DATABASE_URL`.

    database = Database.from_environment(home)
    database.migrate()
    with database.write() as connection:
        connection.execute(jobs.insert().values(...))
    with database.read() as connection:
        rows = connection.execute(select(jobs)).all()

Both databases give the same promises:

- A write is durable when its block ends without an error, and leaves nothing when it ends with one.
- Writes happen one after the other, whoever writes: what a block reads stays true until it ends, and rows get their
  `seq` in the order in which others see them, so nobody who asks for "all after 17" misses one.
- A read sees one moment, never blocks a write and is never blocked by one.
- Whoever waits longest writes next; who waits too long gets a `StorageError` with the code `busy`.

A block should be short: no waiting for a network, no `await`, no fork.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, Engine, exc, make_url

from tunesmith.errors import SpecError, StorageError
from tunesmith.record import schema
from tunesmith.record.database_errors import busy, database_errors
from tunesmith.record.home import Home
from tunesmith.record.postgresql import PostgresqlBackend
from tunesmith.record.sqlite import SqliteBackend
from tunesmith.record.turns import FairLock

_T = TypeVar("_T")

_VARIABLE = "TUNESMITH_DATABASE_URL"
#: Migrations of other processes may take a while.
_MIGRATION_SECONDS = 600.0
#: How long a database that went away is looked for before a caller is told.
_RECONNECT_SECONDS = 5.0
_ATTEMPTS = 5


class Database:
    """Reads and writes, by SQLAlchemy Core; see the module for what they promise.

    Threads share one object. After a fork, the child's copy opens connections of its own.

    Args:
        url: `sqlite:////path/record.db`, or `postgresql://user:password@host/name`.
        busy_seconds: how long a write waits for its turn before it fails with `busy`.

    Raises:
        SpecError: the URL is of no database that Tunesmith knows.
    """

    def __init__(self, url: str, *, busy_seconds: float = 15.0) -> None:
        try:
            parsed = make_url(url.replace("postgres://", "postgresql://", 1) if url.startswith("postgres://") else url)
        except exc.ArgumentError:
            raise _bad_url() from None
        self.busy_seconds = busy_seconds
        self._backend: SqliteBackend | PostgresqlBackend
        if parsed.get_backend_name() == "sqlite" and parsed.database not in (None, "", ":memory:"):
            self._backend = SqliteBackend(Path(parsed.database or ""), busy_seconds)
        elif parsed.get_backend_name() == "postgresql":
            self._backend = PostgresqlBackend(parsed, busy_seconds)
        else:
            raise _bad_url()
        self._lock = FairLock()
        self._is_held_for_fork = False
        _databases.add(self)

    @classmethod
    def from_environment(cls, home: Home, environment: Mapping[str, str] | None = None) -> Database:
        """Return the database that `TUNESMITH_DATABASE_URL` names, or `record.db` in the home.

        Args:
            home: where the file is kept by default.
            environment: the variables to look in; the process's own by default.

        Raises:
            SpecError: the URL is of no database that Tunesmith knows.
        """
        named = (os.environ if environment is None else environment).get(_VARIABLE, "").strip()
        return cls(named or f"sqlite:///{home.root / 'record.db'}")

    @property
    def kind(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._backend.kind

    @property
    def file(self) -> Path | None:
        """The file of SQLite's, None for PostgreSQL."""
        return self._backend.file

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Yield a connection that sees the record as it is at its first statement, and can't change it.

        Raises:
            StorageError: the database is away, damaged, or too many others read.
        """
        with database_errors():
            connection = self._opened(self._backend.reader, self._backend.begin_read)
            try:
                yield connection
            finally:
                _close(connection)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Yield the connection that may write now; what it wrote is durable when the block ends.

        Where PostgreSQL goes away during the commit, it is asked afterwards what became of it, so an error means that
        nothing was written; only when it can't be asked is that not known, and the code is `uncertain`.

        Raises:
            StorageError: others wrote for too long (`busy`), the database went away and nothing was written
                (`unavailable`), the disk is full (`disk_full`), and the like.
            RuntimeError: this thread is writing already.
        """
        with self._writing(self.busy_seconds) as connection:
            yield connection

    def retry(self, function: Callable[[Connection], _T], *, attempts: int = _ATTEMPTS) -> _T:
        """Call `function` with a connection that may write, again from its start when the database goes away.

        Nothing of a failed attempt remains, so `function` may do anything to the database; what else it does happens
        once for each attempt. Its result is that of the attempt that was stored.

        Raises:
            StorageError: see `write`; `unavailable` only after so many attempts, `uncertain` at once.
        """
        for attempt in range(1, attempts + 1):
            try:
                with self.write() as connection:
                    return function(connection)
            except StorageError as error:
                if error.code != "unavailable" or attempt == attempts:
                    raise
                time.sleep(0.05 * 2**attempt)
        raise AssertionError("there is at least one attempt")

    def migrate(self) -> None:
        """Create the tables, or bring those of an older version up to date. Many processes may do so at once.

        It happens whole or not at all, also when the process is killed.

        Raises:
            StorageError: the record was made by a newer version (`record_too_new`), or see `write`.
        """
        with self.read() as connection:
            if schema.is_current(connection):
                return
        with self._writing(_MIGRATION_SECONDS, is_migration=True) as connection:
            schema.upgrade(connection)

    def check(self) -> None:
        """Ask the database something, to know whether it answers and has its tables.

        Raises:
            StorageError: it doesn't, or they aren't up to date (`record_not_ready`).
        """
        with self.read() as connection:
            schema.check_current(connection)

    def close(self) -> None:
        """Close all connections; what is asked afterwards opens new ones."""
        self._backend.close()

    def __repr__(self) -> str:
        return f"Database({self.kind})"

    @contextmanager
    def _writing(self, wait_seconds: float, *, is_migration: bool = False) -> Iterator[Connection]:
        deadline = time.monotonic() + wait_seconds
        if not self._lock.acquire(wait_seconds):
            raise busy()
        try:
            with database_errors():
                connection = self._opened(
                    self._backend.writer, lambda new: self._backend.begin_write(new, deadline, is_migration)
                )
                try:
                    yield connection
                    self._commit(connection, is_migration=is_migration)
                finally:
                    if is_migration:
                        # Settings that are only for migrations go with the connection.
                        connection.invalidate()
                    _close(connection)
        finally:
            self._lock.release()

    def _opened(self, engine: Engine, begin: Callable[[Connection], None]) -> Connection:
        """Return a connection in a transaction that has begun; a database that is away is looked for, for a while."""
        give_up = time.monotonic() + _RECONNECT_SECONDS
        while True:
            try:
                with database_errors():
                    connection = engine.connect()
                    try:
                        connection.begin()
                        begin(connection)
                    except BaseException:
                        _close(connection)
                        raise
                    return connection
            except StorageError as error:
                if error.code != "unavailable" or time.monotonic() > give_up:
                    raise
                time.sleep(0.1)

    def _commit(self, connection: Connection, *, is_migration: bool) -> None:
        """Commit; where the connection broke meanwhile, find out what became of it."""
        try:
            with database_errors():
                connection.commit()
        except StorageError as error:
            backend = self._backend
            if error.code != "unavailable" or is_migration or not isinstance(backend, PostgresqlBackend):
                raise
            _close(connection)
            if not self._was_committed(backend):
                raise

    def _was_committed(self, backend: PostgresqlBackend) -> bool:
        """Ask what became of the last transaction.

        Raises:
            StorageError: it can't be known (`uncertain`).
        """
        give_up = time.monotonic() + 2 * _RECONNECT_SECONDS
        while time.monotonic() < give_up:
            with suppress(StorageError), database_errors():
                connection = self._opened(backend.writer, lambda _: None)
                try:
                    return backend.was_committed(connection)
                finally:
                    _close(connection)
            time.sleep(0.1)
        raise StorageError(
            "The database went away while it was storing this; whether it did isn't known.",
            where="the record",
            fix="Look whether it is there before you try again.",
            code="uncertain",
        )

    def _before_fork(self) -> None:
        """Let no write of another thread be halfway: SQLite in the child would wait for its end for good."""
        if self._lock.is_mine:
            return
        self._is_held_for_fork = self._lock.acquire(self.busy_seconds)

    def _after_fork_in_parent(self) -> None:
        if self._is_held_for_fork:
            self._is_held_for_fork = False
            self._lock.release()

    def _after_fork_in_child(self) -> None:
        """Leave the parent's connections alone: what a child says on them would end the parent's."""
        self._is_held_for_fork = False
        self._lock = FairLock()
        self._backend.abandon()


def _close(connection: Connection) -> None:
    """Give a connection back; one that broke can't say good-bye, and what its block did is neither better nor worse."""
    try:
        connection.close()
    except exc.DBAPIError as error:
        if not error.connection_invalidated:
            raise
        connection.close()


def _bad_url() -> SpecError:
    return SpecError(
        "The database's URL is of no database that Tunesmith knows.",
        where=_VARIABLE,
        fix="Use postgresql://user:password@host/name, or sqlite:////folder/record.db, or leave it away.",
        code="invalid_database_url",
    )


_databases: weakref.WeakSet[Database] = weakref.WeakSet()


def _each(action: Callable[[Database], None]) -> Callable[[], None]:
    """Return what does something to every database of this process."""

    def act() -> None:
        for database in list(_databases):
            action(database)

    return act


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_each(Database._before_fork),
        after_in_parent=_each(Database._after_fork_in_parent),
        after_in_child=_each(Database._after_fork_in_child),
    )
