"""Backups of a platform that goes on working: the record of one moment, and all that it needs.

First the record is copied, then what it names: content by its hash, runs with their checkpoints, models. What it names
may be deleted meanwhile; then a newer copy of the record doesn't name it any more, so another round is made. A run is
copied with its checkpoints first and its journals last, so it is as if its process had been killed at that moment.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from tunesmith.errors import StorageError
from tunesmith.record.backup_files import CONTENT, DATABASE, MODELS, RUNS, BackupWriter, check_target, new_backup
from tunesmith.record.database import Database
from tunesmith.record.database_copy import copy_database
from tunesmith.record.home import Home
from tunesmith.record.store import Store

_ROUNDS = 5
_PIECE_BYTES = 2**20
_CHECKPOINTS = "checkpoints"
_VERSION = "tunesmith"


@dataclass(frozen=True, slots=True)
class BackupReport:
    """What a backup holds, or what was restored from it.

    Attributes:
        files: how many there are, by their part: `record.db`, `files`, `models`, `runs`.
        bytes: of all files.
        missing: content and models that the record names and that were missing or damaged already.
    """

    files: dict[str, int]
    bytes: int
    missing: tuple[str, ...] = ()


def back_up(target: Path, home: Home, database: Database, store: Store, version: str) -> BackupReport:
    """Write a backup; jobs may run meanwhile.

    Args:
        target: a folder or a `.tar` file that isn't there yet.
        home: where runs and models are kept.
        database: the record.
        store: the content.
        version: of Tunesmith, for the manifest.

    Raises:
        StorageError: the target is there or can't be written, or the record is damaged.
    """
    check_target(target)
    database.migrate()
    facts: dict[str, Any] = {
        _VERSION: version,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "database": database.kind,
    }
    with new_backup(target, facts) as writer:
        backup = _Backup(writer, home, store)
        missing = backup.write(database)
        facts["missing"] = missing
    return report_of({name: entry.bytes for name, entry in writer.entries.items()}, missing)


def report_of(sizes: dict[str, int], missing: list[str]) -> BackupReport:
    """Count files by their part."""
    counts: dict[str, int] = {}
    for name in sizes:
        part = name.partition("/")[0]
        counts[part] = counts.get(part, 0) + 1
    return BackupReport(counts, sum(sizes.values()), tuple(missing))


class _Backup:
    """One backup on its way."""

    def __init__(self, writer: BackupWriter, home: Home, store: Store) -> None:
        self._writer = writer
        self._home = home
        self._store = store

    def write(self, database: Database) -> list[str]:
        """Write everything, and return what is missing in the record's own eyes."""
        with tempfile.TemporaryDirectory(prefix="tunesmith-backup-", dir=self._home.root) as folder:
            copy = Path(folder) / DATABASE
            missing: list[str] = []
            for _ in range(_ROUNDS):
                copy.unlink(missing_ok=True)
                copy_database(database, copy)
                before, missing = missing, self._write_named(copy)
                # What is missing twice wasn't deleted a moment ago.
                if not missing or missing == before:
                    break
            with copy.open("rb") as file:
                self._writer.add(DATABASE, file, os.fstat(file.fileno()).st_size)
        return missing

    def _write_named(self, copy: Path) -> list[str]:
        """Write what a copy of the record needs, and return what of it isn't there."""
        digests, models = _named(copy)
        missing = [f"{CONTENT}/{sha256}" for sha256 in digests if not self._write_blob(sha256)]
        # Models after runs: a run that says that it has made a model is never without it.
        self._writer.discard(f"{RUNS}/")
        for run in _folders(self._home.runs):
            self._write_run(run)
        there = {path.name for path in _folders(self._home.models) if self._write_tree(path, f"{MODELS}/{path.name}")}
        return missing + [f"{MODELS}/{name}" for name in models if name not in there]

    def _write_blob(self, sha256: str) -> bool:
        """Write content, and return whether it is there and what its name promises."""
        name = f"{CONTENT}/{sha256[:2]}/{sha256}"
        if name in self._writer.entries:
            return True
        try:
            size_bytes = self._store.size(sha256)
            with self._store.open(sha256) as file:
                entry = self._writer.add(name, file, size_bytes)
        except StorageError as error:
            if error.code != "missing_content":
                raise
            return False
        if entry.sha256 != sha256:
            self._writer.discard(name)
            return False
        return True

    def _write_run(self, run: Path) -> None:
        """Write a run: checkpoints, which come and go whole, then what grows."""
        name = f"{RUNS}/{run.name}"
        for _ in range(_ROUNDS):
            checkpoints = list(_folders(run / _CHECKPOINTS))
            if all([self._write_tree(one, f"{name}/{_CHECKPOINTS}/{one.name}") for one in checkpoints]):
                break
        for path in _files(run, except_for=_CHECKPOINTS):
            with tempfile.SpooledTemporaryFile(_PIECE_BYTES, dir=str(self._home.root)) as copy:
                size_bytes = _copy_of_one_moment(path, copy)
                if size_bytes is not None:
                    self._writer.add(f"{name}/{path.relative_to(run).as_posix()}", cast(BinaryIO, copy), size_bytes)

    def _write_tree(self, folder: Path, name: str) -> bool:
        """Write a folder that never changes; return False, and nothing remains of it, if it goes away meanwhile."""
        try:
            for path in _files(folder):
                inner = f"{name}/{path.relative_to(folder).as_posix()}"
                if inner not in self._writer.entries:
                    with path.open("rb") as file:
                        self._writer.add(inner, file, os.fstat(file.fileno()).st_size)
        except FileNotFoundError:
            pass
        # Also one whose last files went before they were listed.
        if folder.is_dir():
            return True
        self._writer.discard(f"{name}/")
        return False


def _named(copy: Path) -> tuple[list[str], list[str]]:
    """Return the content and the models' folders that a copy of the record names."""
    with closing(sqlite3.connect(copy)) as connection:
        digests = [row[0] for row in connection.execute("SELECT sha256 FROM blobs ORDER BY sha256")]
        models = [row[0] for row in connection.execute("SELECT DISTINCT folder FROM job_checkpoints")]
    return digests, models


def _folders(place: Path) -> Iterator[Path]:
    """Yield the folders in a place; not those that are being written or removed."""
    if place.is_dir():
        yield from sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(folder: Path, *, except_for: str | None = None) -> Iterator[Path]:
    """Yield the files in a folder and below; not those that are being written, and no links."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if parts[0] == except_for or any(part.startswith(".") and part.endswith(".part") for part in parts):
            continue
        if path.is_file() and not path.is_symlink():
            yield path


def _copy_of_one_moment(path: Path, copy: IO[bytes]) -> int | None:
    """Copy a file as it is when it is opened, and return its size, None if it has gone.

    One that is replaced meanwhile stays open as it was, and what is appended lies beyond its size; one that is cut
    short, as a resumed run does with its journals, is copied again.
    """
    left = size_bytes = 0
    for _ in range(_ROUNDS):
        copy.seek(0)
        copy.truncate()
        try:
            with path.open("rb") as file:
                left = size_bytes = os.fstat(file.fileno()).st_size
                while piece := file.read(min(_PIECE_BYTES, left)):
                    copy.write(piece)
                    left -= len(piece)
                if os.fstat(file.fileno()).st_size >= size_bytes:
                    break
        except FileNotFoundError:
            return None
    copy.seek(0)
    return size_bytes - left
