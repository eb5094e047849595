"""Numbers of a run, one row for each step that measured something: `metrics.jsonl` while it works."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tunesmith.record.lines import JsonLines

Row = dict[str, Any]


class MetricsLog:
    """Appends rows of numbers to a file.

    Rows reach the disk for certain with `sync`, which belongs right before a checkpoint: rows after the last
    checkpoint are measured again by a resumed run, so waiting for the disk at each of them would buy nothing.
    """

    def __init__(self, path: Path) -> None:
        """Name the file."""
        self._lines = JsonLines(path)

    def add(self, step: int, **values: float | int | str | None) -> None:
        """Record what was measured at `step` (1 is after the first optimiser step).

        Infinite values and those that are not a number are kept as null.

        Raises:
            StorageError: the disk is full; the file ends with the row before.
        """
        self._lines.append({"step": step, **values}, durable=False)

    def sync(self) -> None:
        """Wait until every row so far is on the disk.

        Raises:
            StorageError: the disk refuses.
        """
        self._lines.sync()

    def truncate_after(self, step: int) -> int:
        """Forget rows of later steps than `step`, which a resumed run measures again; return how many.

        Raises:
            StorageError: the disk is full; the file is as before.
        """
        return self._lines.keep(lambda row: int(row["step"]) <= step)

    def rows(self) -> Iterator[Row]:
        """Yield the rows in order; a torn last line is skipped."""
        return self._lines.rows()

    def close(self) -> None:
        """Close the file."""
        self._lines.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
