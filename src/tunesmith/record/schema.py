"""Which tables the record has, and how those of an older version become those of this one."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from tunesmith.errors import StorageError

_MIGRATIONS = Path(__file__).parent / "migrations"


def configuration(connection: Connection | None = None) -> Config:
    """Return Alembic's configuration: the migrations of this package, carried out on a connection."""
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def is_current(connection: Connection) -> bool:
    """Whether the tables are those of this version.

    Raises:
        StorageError: they were made by a newer version.
    """
    script = ScriptDirectory.from_config(configuration())
    revision = MigrationContext.configure(connection).get_current_revision()
    if revision is not None and revision not in {one.revision for one in script.walk_revisions()}:
        raise StorageError(
            "The record was made by a newer version of Tunesmith.",
            where="the record",
            fix="Install that version, or restore a backup from before: tunesmith restore.",
            code="record_too_new",
        )
    return revision == script.get_current_head()


def check_current(connection: Connection) -> None:
    """Make sure that the tables are those of this version.

    Raises:
        StorageError: they aren't (`record_not_ready`, `record_too_new`).
    """
    if not is_current(connection):
        raise StorageError(
            "The record's tables are of an older version, or aren't there yet.",
            where="the record",
            fix="Start `tunesmith serve` once; it creates and upgrades them.",
            code="record_not_ready",
        )


def upgrade(connection: Connection) -> None:
    """Bring the tables up to date, in the connection's transaction. Nothing happens to those that are.

    Raises:
        StorageError: the record was made by a newer version, or a row would point at nothing afterwards.
    """
    if is_current(connection):
        return
    command.upgrade(configuration(connection), "head")
    if connection.dialect.name == "sqlite" and connection.exec_driver_sql("PRAGMA foreign_key_check").first():
        raise StorageError(
            "The record can't be upgraded: a row of it points at one that is missing.",
            where="the record",
            fix="Restore it from a backup: tunesmith restore.",
            code="record_damaged",
        )
