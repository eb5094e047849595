"""Content by its hash: what users upload and what runs produce, in a folder or at any URL that fsspec reads.

    store = Store.from_environment(home)
    with store.writer() as writer:          # nothing remains of what isn't finished
        for chunk in chunks:
            writer.write(chunk)
        blob = writer.finish()
    store.read(blob.sha256, start=100)      # an iterator of bytes

A blob is called by its SHA-256 and never changes. Content is written beside its final name, hashed on its way, forced
to the disk, then renamed; so what has its final name is whole. Rows of the database name the blobs that they need.

A row and the sweep: content that no row names is swept once it is old. A row may name content that was there already,
just as it is swept. So the block that writes the row asks `exists` before it ends, and the sweep deletes inside a block
that writes (see `sweep`): of the two blocks, one comes first.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from tunesmith.errors import DataError, StorageError
from tunesmith.record.atomic import new_part, sync_folder
from tunesmith.record.blob_places import BlobPlace, FolderPlace, RemotePlace, store_errors
from tunesmith.record.home import Home

_VARIABLE = "TUNESMITH_STORE_URL"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_CHUNK_BYTES = 2**20
_DAY_SECONDS = 24 * 3600.0
#: How many blobs a sweep asks about in one block that writes.
_BATCH = 200
#: How long blobs are deleted in one block that writes.
_LONGEST_BLOCK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Blob:
    """Content that is stored."""

    sha256: str
    bytes: int


class Store:
    """Content by its hash. Threads and processes share a place without knowing of each other.

    Args:
        url: a folder's path, `file://...`, or what else fsspec knows (`s3://bucket/folder`).
        spool: a folder of this machine for content on its way to another; the system's own for temporary files by
            default.

    Raises:
        StorageError: nothing here can open such a URL.
    """

    def __init__(self, url: str | Path, *, spool: Path | None = None) -> None:
        name = str(url).removeprefix("file://")
        self._place: BlobPlace
        if "://" in name or "::" in name:
            self._place = RemotePlace(name, spool or Path(tempfile.gettempdir()) / "tunesmith-spool")
        else:
            self._place = FolderPlace(Path(name).absolute())

    @classmethod
    def from_environment(cls, home: Home, environment: Mapping[str, str] | None = None) -> Store:
        """Return the store that `TUNESMITH_STORE_URL` names, or the folder `files` of the home.

        Args:
            home: where the folder is by default, and where content is kept on its way to another place.
            environment: the variables to look in; the process's own by default.

        Raises:
            StorageError: nothing here can open such a URL.
        """
        named = (os.environ if environment is None else environment).get(_VARIABLE, "").strip()
        return cls(named or home.root / "files", spool=home.root / "spool")

    def writer(self) -> BlobWriter:
        """Return what takes new content in pieces.

        Raises:
            StorageError: the place can't be written, or the disk is full.
        """
        return BlobWriter(self._place)

    def add(self, content: bytes) -> Blob:
        """Store small content that is in memory already.

        Raises:
            StorageError: see `BlobWriter`.
        """
        with self.writer() as writer:
            writer.write(content)
            return writer.finish()

    def read(self, sha256: str, *, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Return a blob's bytes from `start` to before `end`, in pieces. It is opened now, so that it can't go away.

        Raises:
            StorageError: there is no such blob (`missing_content`), or it can't be read.
            DataError: this isn't a digest.
        """
        file = self.open(sha256)
        return _pieces(file, start, end)

    def open(self, sha256: str) -> BinaryIO:
        """Open a blob to read and seek in; the caller closes it.

        Raises:
            StorageError: there is no such blob (`missing_content`), or it can't be read.
            DataError: this isn't a digest.
        """
        with store_errors():
            try:
                return self._place.open(_checked(sha256))
            except FileNotFoundError:
                raise _missing() from None

    def exists(self, sha256: str) -> bool:
        """Whether there is such a blob.

        Raises:
            DataError: this isn't a digest.
        """
        with store_errors():
            return self._place.size(_checked(sha256)) is not None

    def size(self, sha256: str) -> int:
        """Return a blob's size in bytes.

        Raises:
            StorageError: there is no such blob (`missing_content`).
            DataError: this isn't a digest.
        """
        with store_errors():
            size = self._place.size(_checked(sha256))
        if size is None:
            raise _missing()
        return size

    def check_usable(self) -> None:
        """Make sure that content can be written.

        Raises:
            StorageError: it can't, or the disk is full.
        """
        with store_errors():
            self._place.check_usable()

    def delete(self, sha256: str) -> None:
        """Remove a blob, if it is there. Who is reading it reads on.

        Raises:
            StorageError: the place can't be written.
            DataError: this isn't a digest.
        """
        with store_errors():
            self._place.delete(_checked(sha256))

    def delete_some(self, digests: Sequence[str]) -> list[str]:
        """Remove blobs until that has taken half a second, one at least; return those that are left.

        For blocks that write, in which blobs are deleted: others, and workers' signs of life, wait for their end.

        Raises:
            StorageError: the place can't be written.
            DataError: one isn't a digest.
        """
        until = time.monotonic() + _LONGEST_BLOCK_SECONDS
        for count, sha256 in enumerate(digests):
            if count and time.monotonic() > until:
                return list(digests[count:])
            self.delete(sha256)
        return []

    def check(self, sha256: str) -> Blob:
        """Read a blob and hash it again.

        Raises:
            StorageError: there is no such blob (`missing_content`), or it is another content (`damaged_content`).
            DataError: this isn't a digest.
        """
        found, size = hashlib.sha256(), 0
        for piece in self.read(sha256):
            found.update(piece)
            size += len(piece)
        if found.hexdigest() != sha256:
            raise _damaged()
        return Blob(sha256, size)

    def fetch(self, sha256: str, path: Path) -> Blob:
        """Copy a blob to a file of this machine, whole or not at all, and hash it on its way.

        Raises:
            StorageError: there is no such blob (`missing_content`), it is another content (`damaged_content`), or the
                file can't be written.
            DataError: this isn't a digest.
        """
        found, size = hashlib.sha256(), 0
        part = new_part(path)
        with store_errors():
            try:
                with part.open("xb") as file:
                    for piece in self.read(sha256):
                        found.update(piece)
                        size += file.write(piece)
                    file.flush()
                    os.fsync(file.fileno())
                if found.hexdigest() != sha256:
                    raise _damaged()
                part.replace(path)
                sync_folder(path.parent)
            finally:
                part.unlink(missing_ok=True)
        return Blob(sha256, size)

    def sweep(
        self,
        unneeded: Callable[[Collection[str]], AbstractContextManager[Collection[str]]],
        *,
        older_than_seconds: float = _DAY_SECONDS,
    ) -> int:
        """Remove what killed processes left half-written, and old blobs that no row names; return how many.

        Args:
            unneeded: takes digests and yields those that no row names; nobody may write a row until its block ends
                (`with database.write() as connection: ...; yield ...`), for the blobs are deleted inside it.
            older_than_seconds: what is younger may be about to get its row, and stays.

        Raises:
            StorageError: the place can't be read or written.
        """
        with store_errors():
            count = self._place.sweep_parts(older_than_seconds)
            old = (name for name in self._place.names() if self._is_old(name, older_than_seconds))
            while some := list(islice(old, _BATCH)):
                while some:
                    with unneeded(some) as found:
                        # Someone may have stored the same content anew meanwhile.
                        free = [sha256 for sha256 in found if self._is_old(sha256, older_than_seconds)]
                        some = self.delete_some(free)
                        count += len(free) - len(some)
        return count

    def _is_old(self, name: str, older_than_seconds: float) -> bool:
        if not _DIGEST.fullmatch(name):
            return False
        age_seconds = self._place.age_seconds(name)
        return age_seconds is not None and age_seconds > older_than_seconds


class BlobWriter:
    """Takes content in pieces of any size, with a buffer's worth of memory.

    As a context manager it removes everything that wasn't finished when its block ends.

    Raises:
        StorageError: by any method: the disk is full (`disk_full`) or failed; nothing remains of the content.
    """

    def __init__(self, place: BlobPlace) -> None:
        self._place = place
        self._hash = hashlib.sha256()
        self.bytes_written = 0
        with store_errors():
            self._part = new_part(place.parts / "blob")
            descriptor = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            self._file: BinaryIO | None = os.fdopen(descriptor, "wb", buffering=_CHUNK_BYTES)

    def write(self, content: bytes) -> None:
        """Take the next piece.

        Raises:
            StorageError: see the class.
            ValueError: the writer has finished or was aborted.
        """
        if self._file is None:
            raise ValueError("write to a blob that is finished")
        with self._or_abort():
            self._file.write(content)
        self._hash.update(content)
        self.bytes_written += len(content)

    def finish(self, *, expected_sha256: str | None = None) -> Blob:
        """Give the content its name; it is on the disk when this returns.

        Args:
            expected_sha256: what the content must be, where somebody said so.

        Raises:
            StorageError: see the class.
            DataError: the content isn't what was expected (`wrong_digest`); nothing remains of it.
            ValueError: the writer has finished or was aborted.
        """
        if self._file is None:
            raise ValueError("finish a blob that is finished")
        sha256 = self._hash.hexdigest()
        if expected_sha256 is not None and sha256 != _checked(expected_sha256):
            self.abort()
            raise DataError(
                "The content isn't the one that its SHA-256 promises.",
                fix="Send it again.",
                code="wrong_digest",
            )
        with self._or_abort():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._place.publish(self._part, sha256)
        self._file = None
        return Blob(sha256, self.bytes_written)

    def abort(self) -> None:
        """Remove what was written. Nothing happens to what is finished."""
        if self._file is None:
            return
        file, self._file = self._file, None
        # What the buffer still holds can't always be written; the descriptor is closed all the same.
        with suppress(OSError):
            file.close()
        self._part.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    @contextmanager
    def _or_abort(self) -> Iterator[None]:
        """Whatever goes wrong, nothing remains; a failed write is never tried again as if it hadn't failed."""
        try:
            with store_errors():
                yield
        except BaseException:
            self.abort()
            raise


def _checked(sha256: str) -> str:
    """Return a digest that is one: it becomes part of a path.

    Raises:
        DataError: it isn't 64 hexadecimal digits in lower case.
    """
    if not _DIGEST.fullmatch(sha256):
        raise DataError(
            "This isn't a SHA-256 digest.", fix="Give 64 hexadecimal digits in lower case.", code="invalid_digest"
        )
    return sha256


def _pieces(file: BinaryIO, start: int, end: int | None) -> Iterator[bytes]:
    """Yield a file's bytes in a range, and close it."""
    with file, store_errors():
        file.seek(start)
        while end is None or start < end:
            piece = file.read(_CHUNK_BYTES if end is None else min(_CHUNK_BYTES, end - start))
            if not piece:
                return
            start += len(piece)
            yield piece


def _missing() -> StorageError:
    return StorageError(
        "The content isn't in the file store any more.",
        where="the file store",
        fix="Restore it from a backup, or upload the file again.",
        code="missing_content",
    )


def _damaged() -> StorageError:
    return StorageError(
        "The content in the file store has changed: it isn't the one that its name promises.",
        where="the file store",
        fix="Restore it from a backup, or upload the file again.",
        code="damaged_content",
    )
