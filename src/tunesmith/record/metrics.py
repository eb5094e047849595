"""Numbers of a run, one row for each step that measured something: `metrics.jsonl` while it works."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tunesmith.record.step_log import StepLog

Row = dict[str, Any]


class MetricsLog(StepLog):
    """Appends rows of numbers to a file.

    Rows reach the disk for certain with `sync`, which belongs right before a checkpoint: rows after the last
    checkpoint are measured again by a resumed run, so waiting for the disk at each of them would buy nothing.
    """

    def add(self, step: int, **values: float | int | str | None) -> None:
        """Record what was measured at `step` (1 is after the first optimiser step).

        Infinite values and those that are not a number are kept as null.

        Raises:
            StorageError: the disk is full; the file ends with the row before.
        """
        self._lines.append({"step": step, **values}, durable=False)

    def rows(self) -> Iterator[Row]:
        """Yield the rows in order; a torn last line is skipped."""
        return self._lines.rows()
