"""What the databases' own errors mean to a person. No text of theirs, no path and no address is passed on."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import exc

from tunesmith.errors import StorageError, TunesmithError

#: Codes of refusals that pass on their own.
PASSING_CODES = frozenset({"busy", "unavailable"})

_WHERE = "the record"

_BUSY = ("busy", "The record is busy: others have been writing to it for too long.", "Try again in a moment.")
_UNAVAILABLE = (
    "unavailable",
    "The database that holds the record doesn't answer.",
    "Try again in a moment; if it stays so, see whether the database of TUNESMITH_DATABASE_URL runs.",
)
_DISK_FULL = ("disk_full", "The disk that holds the record is full.", "Free some space on it and try again.")
_REFUSED = (
    "not_writable",
    "The record can't be written.",
    "Check the permissions of TUNESMITH_HOME, or of the database's user.",
)
_DAMAGED = (
    "record_damaged",
    "The record is damaged or isn't a database.",
    "Restore it from a backup: tunesmith restore.",
)
_FAILED = ("record_failed", "The disk that holds the record failed.", "Check the disk; nothing was stored.")
_NO_ACCESS = (
    "database_refused",
    "The database refuses the user, the password or the name in TUNESMITH_DATABASE_URL.",
    "Correct TUNESMITH_DATABASE_URL.",
)
_NO_TABLES = (
    "record_not_ready",
    "The record's tables aren't there yet.",
    "Start `tunesmith serve` once; it creates and upgrades them.",
)

#: By SQLite's primary result code.
_SQLITE = {
    sqlite3.SQLITE_BUSY: _BUSY,
    sqlite3.SQLITE_LOCKED: _BUSY,
    sqlite3.SQLITE_FULL: _DISK_FULL,
    sqlite3.SQLITE_READONLY: _REFUSED,
    sqlite3.SQLITE_CANTOPEN: _REFUSED,
    sqlite3.SQLITE_PERM: _REFUSED,
    sqlite3.SQLITE_AUTH: _REFUSED,
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
    sqlite3.SQLITE_IOERR: _FAILED,
}
#: By PostgreSQL's SQLSTATE, or its first two characters.
_POSTGRESQL = {
    "55P03": _BUSY,
    "57014": _BUSY,
    "40": _BUSY,
    "53100": _DISK_FULL,
    "53": _BUSY,
    "08": _UNAVAILABLE,
    "57": _UNAVAILABLE,
    "25P03": _UNAVAILABLE,
    "28": _NO_ACCESS,
    "3D": _NO_ACCESS,
    "42501": _REFUSED,
    "25006": _REFUSED,
    "42P01": _NO_TABLES,
    "58": _FAILED,
    "XX": _DAMAGED,
}


def busy() -> StorageError:
    """Return the error for a lock that didn't come in time."""
    return _error(_BUSY)


@contextmanager
def database_errors() -> Iterator[None]:
    """Turn what the database says into an error of ours.

    `IntegrityError` passes as it is: the repositories ask for it. So do faults of the program's own.

    Raises:
        StorageError: the database is busy, away, full, damaged or refuses.
    """
    try:
        yield
    except exc.IntegrityError:
        raise
    except exc.TimeoutError as error:
        raise busy() from error
    except sqlite3.Error as error:
        known = _of_sqlite(error)
        if known is None:
            raise
        raise _error(known) from error
    except exc.StatementError as error:
        # A column's type refused a value before the database saw it.
        if isinstance(error.orig, TunesmithError):
            raise error.orig from None
        known = _of_sqlite(error.orig) if isinstance(error.orig, sqlite3.Error) else _of_postgresql(error)
        if known is None:
            raise
        raise _error(known) from error


def _of_sqlite(error: sqlite3.Error) -> tuple[str, str, str] | None:
    """Return code, message and fix for an error of SQLite's, None for one that is a fault of the program."""
    if "no such table" in str(error):
        return _NO_TABLES
    number = getattr(error, "sqlite_errorcode", None)
    if number is None:
        return None
    number &= 0xFF
    if number in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR) and not _can_open_files():
        return _BUSY
    return _SQLITE.get(number)


def _of_postgresql(error: exc.StatementError) -> tuple[str, str, str] | None:
    """Return code, message and fix for an error of PostgreSQL's, None for one that is a fault of the program."""
    state = getattr(error.orig, "sqlstate", None)
    if state is not None:
        known = _POSTGRESQL.get(state) or _POSTGRESQL.get(state[:2])
        if known is not None:
            return known
    is_gone = isinstance(error, exc.DBAPIError) and error.connection_invalidated
    # A connection that never came about has no state.
    return _UNAVAILABLE if is_gone or (isinstance(error, exc.OperationalError) and state is None) else None


def _can_open_files() -> bool:
    """Whether this process may have one more file open. SQLite doesn't say why it couldn't."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _error(known: tuple[str, str, str]) -> StorageError:
    code, message, fix = known
    return StorageError(message, where=_WHERE, fix=fix, code=code)
