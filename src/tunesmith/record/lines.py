"""An append-only file of JSON objects, one on each line, that survives crashes and full disks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tunesmith.errors import storage_errors
from tunesmith.record.atomic import write_bytes

_TAIL_BYTES = 1 << 16


class JsonLines:
    """Appends rows to a file; each row is there whole or not at all.

    A last line that a crash cut short is dropped when the file is next opened for appending, and skipped by readers.
    One process appends at a time: a run has one owner.
    """

    def __init__(self, path: Path) -> None:
        """Name the file; it is created by the first `append`."""
        self.path = path
        self._descriptor: int | None = None

    def append(self, row: Mapping[str, Any], *, durable: bool = True) -> None:
        """Add a row at the end.

        Args:
            row: plain JSON values. Numbers that JSON has no word for (infinite, not a number) are written as null.
            durable: wait until the row is on the disk. Without it, `sync` does so for all rows so far.

        Raises:
            StorageError: the disk is full or the file can't be written; the file ends with the row before.
        """
        line = _encode(row)
        with storage_errors(self.path):
            descriptor = self._open()
            length_bytes = os.fstat(descriptor).st_size
            try:
                written = 0
                while written < len(line):
                    written += os.write(descriptor, line[written:])
                if durable:
                    os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, length_bytes)
                raise

    def sync(self) -> None:
        """Wait until every row so far is on the disk.

        Raises:
            StorageError: the disk refuses.
        """
        if self._descriptor is not None:
            with storage_errors(self.path):
                os.fsync(self._descriptor)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows in order; a torn last line is skipped, a missing file has no rows.

        Raises:
            ValueError: a line other than the last isn't a JSON object; someone edited the file.
        """
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{self.path}, line {number}: this isn't JSON") from error
                if not isinstance(row, dict):
                    raise ValueError(f"{self.path}, line {number}: this isn't a JSON object")
                yield row

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> int:
        """Rewrite the file with the rows that are wanted; return how many were dropped.

        Raises:
            StorageError: the disk is full; the file is as before.
        """
        rows = list(self.rows())
        kept = [row for row in rows if wanted(row)]
        if len(kept) < len(rows):
            self.close()
            write_bytes(self.path, b"".join(_encode(row) for row in kept))
        return len(rows) - len(kept)

    def close(self) -> None:
        """Close the file; a later `append` opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> int:
        """Return the descriptor to append with; opening drops a torn last line."""
        if self._descriptor is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                _drop_torn_line(descriptor)
            except OSError:
                os.close(descriptor)
                raise
            self._descriptor = descriptor
        return self._descriptor


def _drop_torn_line(descriptor: int) -> None:
    """Cut the file after its last line feed."""
    end = length_bytes = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - _TAIL_BYTES)
        os.lseek(descriptor, start, os.SEEK_SET)
        found = os.read(descriptor, end - start).rfind(b"\n")
        if found >= 0:
            end = start + found + 1
            break
        end = start
    if end < length_bytes:
        os.ftruncate(descriptor, end)


def _encode(row: Mapping[str, Any]) -> bytes:
    """Return the row as one line of JSON."""
    return json.dumps(_finite(dict(row)), ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n"


def _finite(value: Any) -> Any:
    """Replace numbers that JSON can't hold by None, at any depth."""
    if isinstance(value, float):
        return value if -float("inf") < value < float("inf") else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
