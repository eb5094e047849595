"""Where blobs lie: a folder of this machine, or any file system that fsspec knows. `store` is the way in."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol, cast

import fsspec

from tunesmith.errors import StorageError, storage_errors
from tunesmith.record.atomic import is_left_over, new_part, sweep, sync_folder

_WHERE = "the file store"
_CHUNK_BYTES = 2**20


class BlobPlace(Protocol):
    """What a place can do. Digests are checked before they get here."""

    @property
    def parts(self) -> Path:
        """The folder of this machine in which content is written before it has its name; it exists."""

    def publish(self, part: Path, sha256: str) -> None:
        """Give a file from `parts`, which is on the disk whole, its final name; it is gone from there."""

    def open(self, sha256: str) -> BinaryIO:
        """Open a blob; FileNotFoundError where there is none."""

    def size(self, sha256: str) -> int | None:
        """Return a blob's size in bytes, None where there is none."""

    def age_seconds(self, sha256: str) -> float | None:
        """Return how long ago a blob was published, None where there is none or nobody knows."""

    def delete(self, sha256: str) -> None:
        """Remove a blob, if it is there."""

    def names(self) -> Iterator[str]:
        """Yield the last part of the name of everything that might be a blob."""

    def sweep_parts(self, older_than_seconds: float) -> int:
        """Remove what killed processes left half-written, and return how many there were."""

    def check_usable(self) -> None:
        """Fail as writing would."""


class FolderPlace:
    """A folder: blob `ab12...` is the file `ab/ab12...`.

    Args:
        root: the folder; it is created when first written to.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def parts(self) -> Path:
        """The folder itself, as a rename doesn't leave a file system."""
        self._root.mkdir(parents=True, exist_ok=True)
        return self._root

    def publish(self, part: Path, sha256: str) -> None:
        """Rename the file; one that is there already is replaced, since only ours has just been hashed."""
        path = self._path(sha256)
        path.parent.mkdir(exist_ok=True)
        part.replace(path)
        sync_folder(path.parent)
        sync_folder(self._root)

    def open(self, sha256: str) -> BinaryIO:
        """Open the file."""
        return self._path(sha256).open("rb")

    def size(self, sha256: str) -> int | None:
        """Ask for the file's size."""
        with suppress(FileNotFoundError):
            return self._path(sha256).stat().st_size
        return None

    def age_seconds(self, sha256: str) -> float | None:
        """Compare the file's time with the clock."""
        with suppress(FileNotFoundError):
            return time.time() - self._path(sha256).stat().st_mtime
        return None

    def delete(self, sha256: str) -> None:
        """Remove the file."""
        path = self._path(sha256)
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            sync_folder(path.parent)

    def names(self) -> Iterator[str]:
        """List the folders."""
        for path in self._root.glob("??/*"):
            yield path.name

    def sweep_parts(self, older_than_seconds: float) -> int:
        """Sweep the folder."""
        return len(sweep(self._root, older_than_seconds=older_than_seconds))

    def check_usable(self) -> None:
        """Write a little."""
        _try_writing(self.parts)

    def _path(self, sha256: str) -> Path:
        return self._root / sha256[:2] / sha256


class RemotePlace:
    """A URL of fsspec's (`s3://bucket/folder`): content is sent under another name, read back, then renamed.

    Args:
        url: the folder.
        spool: a folder of this machine for content that isn't sent yet.

    Raises:
        StorageError: fsspec doesn't know the URL's protocol, or needs a package that isn't installed.
    """

    def __init__(self, url: str, spool: Path) -> None:
        try:
            self._files, root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise StorageError(
                "The file store's URL is of a kind that can't be opened here.",
                where="TUNESMITH_STORE_URL",
                fix="Install the package that fsspec needs for it (s3fs, gcsfs, adlfs, ...), or correct the URL.",
                code="invalid_store_url",
            ) from error
        self._root = PurePosixPath(root)
        self._spool = spool

    @property
    def parts(self) -> Path:
        """The spool."""
        self._spool.mkdir(parents=True, exist_ok=True)
        return self._spool

    def publish(self, part: Path, sha256: str) -> None:
        """Send the file, read back what arrived, and rename it."""
        path = self._path(sha256)
        sent = str(self._root / new_part(Path("blob")).name)
        with _remote_errors():
            self._files.makedirs(str(PurePosixPath(path).parent), exist_ok=True)
            try:
                self._files.put_file(str(part), sent)
                with self._files.open(sent, "rb") as file:
                    arrived = hashlib.sha256()
                    while chunk := file.read(_CHUNK_BYTES):
                        arrived.update(chunk)
                if arrived.hexdigest() != sha256:
                    raise StorageError(
                        "What arrived at the file store isn't what was sent.",
                        where=_WHERE,
                        fix="Try again; if it stays so, check the network and the store.",
                        code="store_failed",
                    )
                if self._files.exists(path):
                    self._files.rm_file(path)
                self._files.mv(sent, path)
            except BaseException:
                with suppress(Exception):
                    self._files.rm_file(sent)
                raise
        part.unlink(missing_ok=True)

    def open(self, sha256: str) -> BinaryIO:
        """Open it there; it is read in pieces."""
        with _remote_errors():
            return cast(BinaryIO, self._files.open(self._path(sha256), "rb"))

    def size(self, sha256: str) -> int | None:
        """Ask there."""
        with _remote_errors(), suppress(FileNotFoundError):
            return int(self._files.info(self._path(sha256))["size"])
        return None

    def age_seconds(self, sha256: str) -> float | None:
        """Ask there; not every file system knows."""
        return self._age_seconds(self._path(sha256))

    def delete(self, sha256: str) -> None:
        """Remove it there."""
        with _remote_errors(), suppress(FileNotFoundError):
            self._files.rm_file(self._path(sha256))

    def names(self) -> Iterator[str]:
        """List what is there."""
        with _remote_errors():
            found = self._files.find(str(self._root)) if self._files.exists(str(self._root)) else []
        for path in found:
            yield PurePosixPath(path).name

    def sweep_parts(self, older_than_seconds: float) -> int:
        """Sweep the spool, and what was sent by killed processes."""
        count = len(sweep(self._spool, older_than_seconds=older_than_seconds))
        for name in list(self.names()):
            path = str(self._root / name)
            if name.endswith(".part") and is_left_over(name, self._age_seconds(path) or 0.0, older_than_seconds):
                with _remote_errors(), suppress(FileNotFoundError):
                    self._files.rm_file(path)
                    count += 1
        return count

    def check_usable(self) -> None:
        """Write a little into the spool, and ask whether the place answers."""
        _try_writing(self.parts)
        with _remote_errors():
            self._files.exists(str(self._root))

    def _age_seconds(self, path: str) -> float | None:
        with _remote_errors(), suppress(FileNotFoundError, NotImplementedError):
            modified: datetime = self._files.modified(path)
            if modified.tzinfo is None:
                modified = modified.replace(tzinfo=UTC)
            return time.time() - modified.timestamp()
        return None

    def _path(self, sha256: str) -> str:
        return str(self._root / sha256[:2] / sha256)


def _try_writing(folder: Path) -> None:
    """Write and remove a small file; not an empty one, which a full disk would still take."""
    probe = new_part(folder / "writable")
    try:
        probe.write_bytes(b"\0" * 4096)
    finally:
        probe.unlink(missing_ok=True)


@contextmanager
def store_errors() -> Iterator[None]:
    """Turn a refusal of the disk's into a `StorageError` that names no path.

    Raises:
        StorageError: the disk is full (`disk_full`), refuses (`not_writable`), or failed (`store_failed`).
    """
    try:
        with storage_errors(Path(_WHERE)):
            yield
    except OSError as error:
        raise StorageError(
            "The disk that holds the files failed.",
            where=_WHERE,
            fix="Check the disk; nothing was stored.",
            code="store_failed",
        ) from error


@contextmanager
def _remote_errors() -> Iterator[None]:
    """Turn whatever a remote file system raises into a `StorageError`, but for what its callers ask for."""
    try:
        yield
    except (StorageError, FileNotFoundError, NotImplementedError):
        raise
    except Exception as error:
        raise StorageError(
            "The file store doesn't answer or refuses.",
            where=_WHERE,
            fix="Check TUNESMITH_STORE_URL, the credentials and the network.",
            code="store_failed",
        ) from error
