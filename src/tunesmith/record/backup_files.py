"""What a backup is made of: named files with their hashes, in a folder or in one `.tar` file.

The manifest comes last and says which files count: what it doesn't name isn't part of the backup, and nothing else of a
`.tar` file is believed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol, cast

from tunesmith.errors import DataError, StorageError, storage_errors
from tunesmith.record.atomic import new_folder, new_part, sync_folder

MANIFEST = "manifest.json"
FORMAT = 1
#: The parts of a backup, by the first part of their names.
DATABASE, CONTENT, MODELS, RUNS = "record.db", "files", "models", "runs"
_PIECE_BYTES = 2**20
_MOST_MANIFEST_BYTES = 2**30
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a backup."""

    sha256: str
    bytes: int


class BackupWriter(Protocol):
    """Takes files; `entries` are those that count."""

    entries: dict[str, Entry]

    def add(self, name: str, content: BinaryIO, size_bytes: int) -> Entry:
        """Take the next so many bytes of a file; one of this name is replaced."""

    def discard(self, prefix: str) -> None:
        """Forget the files whose names begin so."""


class BackupReader:
    """A backup that is there: `manifest` is what it says of itself, `entries` its files."""

    def __init__(self, folder: Path | None, archive: tarfile.TarFile | None) -> None:
        self._folder = folder
        self._archive = archive
        self.manifest = self._read_manifest()
        self.entries = _entries_of(self.manifest)

    def names(self, part: str) -> list[str]:
        """Return the names of the files of a part."""
        return sorted(name for name in self.entries if name.partition("/")[0] == part)

    def pieces(self, name: str) -> Iterator[bytes]:
        """Yield the content of a file; at its end it is known to be the one that was backed up.

        Raises:
            DataError: it is missing or was changed.
        """
        entry = self.entries[name]
        found, left = hashlib.sha256(), entry.bytes
        with self._open(name) as file:
            while piece := file.read(min(_PIECE_BYTES, left + 1)):
                left -= len(piece)
                found.update(piece)
                if left < 0:
                    break
                yield piece
        if left or found.hexdigest() != entry.sha256:
            raise _damaged(name)

    def _read_manifest(self) -> dict[str, Any]:
        with self._open(MANIFEST) as file:
            content = file.read(_MOST_MANIFEST_BYTES)
        try:
            found = json.loads(content)
        except ValueError:
            raise _damaged(MANIFEST) from None
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise DataError(
                "This backup is of a form that this version doesn't know.",
                fix="Use the version of Tunesmith that made it, or a newer one.",
                code="unknown_backup",
            )
        return found

    def _open(self, name: str) -> BinaryIO:
        try:
            if self._folder is not None:
                path = self._folder / name
                # A link could lead anywhere.
                if not path.is_symlink() and path.is_file():
                    return path.open("rb")
            elif self._archive is not None:
                member = self._archive.getmember(name)
                file = self._archive.extractfile(member) if member.isreg() else None
                if file is not None:
                    return cast(BinaryIO, file)
        except (KeyError, OSError, tarfile.TarError):
            pass
        raise _damaged(name)


@contextmanager
def new_backup(target: Path, facts: Mapping[str, Any]) -> Iterator[BackupWriter]:
    """Yield what takes the files of a new backup; it is there, whole, when the block ends well.

    Args:
        target: a folder, or a file that ends in `.tar`; nothing is there yet.
        facts: what the manifest says besides; read when the block has ended.

    Raises:
        StorageError: something is there, or it can't be written.
    """
    check_target(target)
    if target.suffix == ".tar":
        part = new_part(target)
        with storage_errors(target):
            try:
                with _private_file(part) as file:
                    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
                        writer = _TarWriter(archive)
                        yield writer
                        manifest = _manifest(writer, facts)
                        archive.addfile(_member(MANIFEST, len(manifest)), io.BytesIO(manifest))
                    file.flush()
                    os.fsync(file.fileno())
                part.rename(target)
                sync_folder(target.parent)
            finally:
                part.unlink(missing_ok=True)
        return
    with new_folder(target) as folder:
        folder.chmod(0o700)
        files = _FolderWriter(folder)
        yield files
        (folder / MANIFEST).write_bytes(_manifest(files, facts))


@contextmanager
def opened_backup(source: Path) -> Iterator[BackupReader]:
    """Yield a backup that is there.

    Raises:
        DataError: it isn't one, or was made by a newer version.
    """
    if source.is_dir():
        yield BackupReader(source, None)
        return
    try:
        archive = tarfile.open(source, mode="r:")  # noqa: SIM115 - closed below
    except FileNotFoundError:
        raise DataError(
            "There is no such backup.", where=str(source), fix="Check the path.", code="no_such_file"
        ) from None
    except (tarfile.TarError, OSError) as error:
        raise DataError(
            "This isn't a backup of Tunesmith's.", where=str(source), fix="Check the path.", code="unknown_backup"
        ) from error
    with archive:
        yield BackupReader(None, archive)


def check_target(target: Path) -> None:
    """Refuse a name for a backup that is taken, or promises a form that there isn't.

    Raises:
        StorageError: it is.
    """
    if target.exists():
        raise StorageError(
            "Something is there already; a backup never replaces anything.",
            where=str(target),
            fix="Choose another name.",
            code="already_exists",
        )
    if target.suffix in (".gz", ".zip", ".tgz", ".bz2", ".xz", ".zst", ".7z"):
        raise StorageError(
            "Backups are folders or .tar files; weights don't get smaller by packing.",
            where=str(target),
            fix="Choose a name without an ending, or one that ends in .tar.",
            code="unknown_form",
        )


class _FolderWriter:
    """Writes into a folder."""

    def __init__(self, folder: Path) -> None:
        self.entries: dict[str, Entry] = {}
        self._folder = folder

    def add(self, name: str, content: BinaryIO, size_bytes: int) -> Entry:
        """See `BackupWriter`."""
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        hashed = _Hashed(content, size_bytes)
        with _private_file(path) as file:
            while piece := hashed.read(_PIECE_BYTES):
                file.write(piece)
        self.entries[name] = hashed.entry()
        return self.entries[name]

    def discard(self, prefix: str) -> None:
        """See `BackupWriter`."""
        for name in [name for name in self.entries if name.startswith(prefix)]:
            (self._folder / name).unlink()
            del self.entries[name]


class _TarWriter:
    """Writes into an archive; what is discarded only isn't named in the manifest."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self.entries: dict[str, Entry] = {}
        self._archive = archive

    def add(self, name: str, content: BinaryIO, size_bytes: int) -> Entry:
        """See `BackupWriter`."""
        hashed = _Hashed(content, size_bytes)
        self._archive.addfile(_member(name, size_bytes), hashed)  # type: ignore[arg-type]
        self.entries[name] = hashed.entry()
        return self.entries[name]

    def discard(self, prefix: str) -> None:
        """See `BackupWriter`."""
        for name in [name for name in self.entries if name.startswith(prefix)]:
            del self.entries[name]


class _Hashed:
    """So many bytes of a file, hashed as they are read."""

    def __init__(self, file: BinaryIO, size_bytes: int) -> None:
        self._file = file
        self._left = size_bytes
        self._size = size_bytes
        self._hash = hashlib.sha256()

    def read(self, count: int) -> bytes:
        """Read some bytes."""
        piece = self._file.read(min(count, self._left))
        self._left -= len(piece)
        self._hash.update(piece)
        return piece

    def entry(self) -> Entry:
        """Return what was read."""
        return Entry(self._hash.hexdigest(), self._size - self._left)


def _member(name: str, size_bytes: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size_bytes, 0o600
    return member


def _private_file(path: Path) -> BinaryIO:
    """Create a file that nobody else may read: the record holds secrets of webhooks."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")


def _manifest(writer: BackupWriter, facts: Mapping[str, Any]) -> bytes:
    files = {name: asdict(entry) for name, entry in sorted(writer.entries.items())}
    return json.dumps({"format": FORMAT, **facts, "files": files}, indent=1).encode() + b"\n"


def _entries_of(manifest: Mapping[str, Any]) -> dict[str, Entry]:
    """Return the files that a manifest names, if all names are those of a backup.

    Raises:
        DataError: it names something else.
    """
    found = {}
    files = manifest.get("files")
    for name, facts in files.items() if isinstance(files, dict) else ():
        parts = PurePosixPath(name).parts
        is_plain = name == "/".join(parts) and ".." not in parts and "\\" not in name and "\0" not in name
        is_known = name == DATABASE or (len(parts) > 1 and parts[0] in (CONTENT, MODELS, RUNS))
        if not (is_plain and is_known and isinstance(facts, dict) and _is_entry(facts)):
            raise _damaged(MANIFEST)
        found[name] = Entry(facts["sha256"], facts["bytes"])
    if DATABASE not in found:
        raise _damaged(MANIFEST)
    return found


def _is_entry(facts: Mapping[str, Any]) -> bool:
    sha256, size_bytes = facts.get("sha256"), facts.get("bytes")
    return isinstance(sha256, str) and _DIGEST.fullmatch(sha256) is not None and type(size_bytes) is int


def _damaged(name: str) -> DataError:
    return DataError(
        "The backup is damaged: this file of it is missing or was changed.",
        where=name[:200],
        fix="Use another backup.",
        code="damaged_backup",
    )
