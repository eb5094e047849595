"""Puts a backup where nothing is: into an empty home, an empty database, and a store that may hold content already."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tunesmith.errors import StorageError, storage_errors
from tunesmith.record.atomic import new_folder
from tunesmith.record.backup import BackupReport, report_of
from tunesmith.record.backup_files import CONTENT, DATABASE, MODELS, RUNS, BackupReader, opened_backup
from tunesmith.record.database import Database
from tunesmith.record.database_copy import fill_database, holds_anything
from tunesmith.record.home import Home
from tunesmith.record.store import Store


def restore(source: Path, home: Home, database: Database, store: Store) -> BackupReport:
    """Restore a backup. Every file is held against its hash; the record comes last, when all that it names is there.

    Args:
        source: the backup.
        home: where runs and models will be kept.
        database: the record; it may be of another kind than the one that was backed up.
        store: the content.

    Raises:
        DataError: this isn't a backup, or it is damaged.
        StorageError: something is there already (`not_empty`), or a place can't be written.
    """
    with opened_backup(source) as backup:
        _check_empty(home, database)
        with _unpacked(backup, DATABASE, home) as copy:
            for name in backup.names(CONTENT):
                _restore_blob(backup, name, store)
            for part in (MODELS, RUNS):
                _restore_folder(backup, part, home)
            fill_database(copy, database)
        missing = [str(one) for one in backup.manifest.get("missing") or ()]
        return report_of({name: entry.bytes for name, entry in backup.entries.items()}, missing)


def _check_empty(home: Home, database: Database) -> None:
    """Refuse to restore over what is there.

    Raises:
        StorageError: something is (`not_empty`).
    """
    for part in (MODELS, RUNS):
        folder = home.root / part
        if folder.is_dir() and any(folder.iterdir()):
            raise StorageError(
                "There are models or runs already; nothing is restored over them.",
                where=str(folder),
                fix="Set TUNESMITH_HOME to an empty folder, or move this one away.",
                code="not_empty",
            )
    if holds_anything(database):
        raise StorageError(
            "The record holds something already; nothing is restored over it.",
            where="the record",
            fix="Set TUNESMITH_HOME to an empty folder, or TUNESMITH_DATABASE_URL to an empty database.",
            code="not_empty",
        )


def _restore_blob(backup: BackupReader, name: str, store: Store) -> None:
    sha256 = backup.entries[name].sha256
    if store.exists(sha256):
        store.check(sha256)
        return
    with store.writer() as writer:
        for piece in backup.pieces(name):
            writer.write(piece)
        writer.finish(expected_sha256=sha256)


def _restore_folder(backup: BackupReader, part: str, home: Home) -> None:
    """Make a whole part of the home anew; it has its name when all of it is there."""
    names = backup.names(part)
    if not names:
        return
    with new_folder(home.root / part) as folder:
        for name in names:
            path = folder / name.partition("/")[2]
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                for piece in backup.pieces(name):
                    file.write(piece)


@contextmanager
def _unpacked(backup: BackupReader, name: str, home: Home) -> Iterator[Path]:
    """Yield a file of a backup as a file of this machine that may be changed."""
    with storage_errors(home.root):
        home.root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="tunesmith-restore-", dir=home.root) as folder:
            path = Path(folder) / DATABASE
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                for piece in backup.pieces(name):
                    file.write(piece)
            yield path
