"""PostgreSQL as the record's database, through psycopg 3; needs `pip install 'tunesmith[postgres]'`."""

from __future__ import annotations

import secrets
import time
from typing import Any, Literal

from sqlalchemy import URL, BigInteger, Connection, Pool, cast, create_engine, event, extract, func, select
from sqlalchemy.dialects.postgresql import insert

from tunesmith.errors import StorageError
from tunesmith.record.tables import writers

_CONNECTIONS = 16
#: One number for all Tunesmiths that share a database: whoever holds the lock of that number may write.
_WRITER = 0x54554E45
#: A connection that is cut off without a word is noticed within half a minute or so.
_CONNECT = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
    "application_name": "tunesmith",
}
_MONTH_SECONDS = 30 * 24 * 3600


class PostgresqlBackend:
    """The engine for one database; readers and the writer share its connections.

    Args:
        url: where it is.
        busy_seconds: how long to wait for a lock, or for a free connection.

    Raises:
        StorageError: psycopg isn't installed.
    """

    kind: Literal["postgresql"] = "postgresql"
    file = None

    def __init__(self, url: URL, busy_seconds: float) -> None:
        try:
            import psycopg  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise StorageError(
                "PostgreSQL needs the package psycopg, which isn't installed.",
                where="TUNESMITH_DATABASE_URL",
                fix="Install it: pip install 'tunesmith[postgres]'",
                code="missing_package",
            ) from error
        self._busy_seconds = busy_seconds
        self._abandoned: list[Pool] = []
        self._id = secrets.token_hex(16)
        self._number = 0
        self.writer = create_engine(
            url.set(drivername="postgresql+psycopg"),
            module=psycopg,
            pool_size=_CONNECTIONS,
            max_overflow=0,
            pool_timeout=busy_seconds,
            pool_pre_ping=True,
            hide_parameters=True,
            connect_args={name: value for name, value in _CONNECT.items() if name not in url.query},
        )
        event.listen(self.writer, "connect", lambda driver, _: self._prepare(driver))
        self.reader = self.writer.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    def begin_read(self, connection: Connection) -> None:
        """Begin to read; PostgreSQL begins by itself."""

    def begin_write(self, connection: Connection, deadline: float, is_migration: bool) -> None:
        """Begin to write: wait for whoever writes now, until the deadline.

        The transaction leaves its number in a row of this object's own, for `was_committed`.
        """
        self._take_lock(connection, deadline)
        self._number += 1
        if is_migration:
            return
        now = cast(extract("epoch", func.now()), BigInteger)
        if self._number == 1:
            # Processes that haven't written for so long are gone.
            connection.execute(writers.delete().where(writers.c.updated_at < now - _MONTH_SECONDS))
        mine = insert(writers).values(id=self._id, number=self._number, updated_at=now)
        connection.execute(
            mine.on_conflict_do_update(
                index_elements=[writers.c.id],
                set_={"number": mine.excluded.number, "updated_at": mine.excluded.updated_at},
            )
        )

    def was_committed(self, connection: Connection) -> bool:
        """Whether the last transaction that `begin_write` began was stored; waits for its end.

        PostgreSQL's own `pg_xact_status` can't tell: after a crash, it may give a transaction's number to another.
        """
        self._take_lock(connection, time.monotonic() + self._busy_seconds)
        number = connection.scalar(select(writers.c.number).where(writers.c.id == self._id))
        return number == self._number

    def close(self) -> None:
        """Close all connections."""
        self.writer.dispose()

    def abandon(self) -> None:
        """Forget all connections without a word, after a fork."""
        self._id = secrets.token_hex(16)
        self._abandoned.append(self.writer.pool)
        self.writer.dispose(close=False)

    def _take_lock(self, connection: Connection, deadline: float) -> None:
        left_ms = max(1, round(1000 * (deadline - time.monotonic())))
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {left_ms}")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITER})")

    def _prepare(self, driver: Any) -> None:
        """Set what every connection needs; a process that freezes while it writes doesn't stop all others for good."""
        driver.autocommit = True
        with driver.cursor() as cursor:
            cursor.execute("SET synchronous_commit = on")
            cursor.execute(f"SET lock_timeout = {round(1000 * self._busy_seconds)}")
            cursor.execute(f"SET idle_in_transaction_session_timeout = {round(2000 * self._busy_seconds)}")
        driver.autocommit = False
