"""What the logs of a run have in common: a file of lines, most of them of a step, that a resumed run takes back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tunesmith.record.lines import JsonLines


class StepLog:
    """A file of JSON lines; subclasses say what a line holds."""

    def __init__(self, path: Path) -> None:
        """Name the file."""
        self._lines = JsonLines(path)

    def sync(self) -> None:
        """Wait until every line so far is on the disk.

        Raises:
            StorageError: the disk refuses.
        """
        self._lines.sync()

    def truncate_after(self, step: int) -> int:
        """Forget lines of later steps than `step`, which a resumed run makes again; return how many.

        Raises:
            StorageError: the disk is full; the file is as before.
        """
        return self._lines.keep(lambda line: self._step_of(line) <= step)

    def close(self) -> None:
        """Close the file."""
        self._lines.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _step_of(self, line: Mapping[str, Any]) -> float:
        """Return the step that a line belongs to."""
        return int(line["step"])
