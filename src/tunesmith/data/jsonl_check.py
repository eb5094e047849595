"""Whether content that is still arriving is JSONL: one JSON object a line.

A short content is checked where it is, a longer one by a process of its own, which gets it through a pipe: parsing
holds Python's lock, and a server has others to answer meanwhile. Memory is that of the longest line that is allowed.

    check = JsonlCheck()
    try:
        for piece in pieces:
            check.feed(piece)
            if check.problems: ...     # known already; nobody needs the rest
        check.finish()
    finally:
        check.close()
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

from tunesmith.data.jsonl import jsonl_rows, lines_of
from tunesmith.data.problems import MAX_LISTED, RowProblem
from tunesmith.errors import DataError, TunesmithError

#: Content up to this size is checked where it is; starting a process takes longer.
_IN_PLACE_BYTES = 2**20
#: A problem's text is cut here: it may quote the line.
_MAX_TEXT = 400


@dataclass(frozen=True, slots=True)
class LineProblem:
    """What is wrong with one line; `line` counts from 1, and is None for the file as a whole."""

    line: int | None
    message: str
    fix: str
    code: str


def problems_of(stream: BinaryIO) -> tuple[LineProblem, ...]:
    """Return what is wrong with the lines of a stream: up to 20 problems. It is read no further than it needs."""
    found: list[LineProblem] = []
    any_rows = False
    try:
        for row in jsonl_rows(lines_of(stream, "file"), "file"):
            any_rows = True
            if not isinstance(row, RowProblem):
                continue
            found.append(LineProblem(row.place.line, row.message[:_MAX_TEXT], row.fix[:_MAX_TEXT], row.code))
            if row.code == "line_too_long" or len(found) == MAX_LISTED:
                return tuple(found)
    except DataError as error:
        return (LineProblem(1, error.message, error.fix or "", error.code or "invalid_encoding"),)
    if not any_rows:
        return (
            LineProblem(
                None, "This file holds no rows.", "Put at least 10 examples in it, one a line.", "too_few_examples"
            ),
        )
    return tuple(found)


class JsonlCheck:
    """Takes content in pieces; knows its `problems` at its end at the latest. Not for several threads at once."""

    def __init__(self) -> None:
        self._start = bytearray()
        self._child: subprocess.Popen[bytes] | None = None
        self._problems: tuple[LineProblem, ...] | None = None

    @property
    def problems(self) -> tuple[LineProblem, ...]:
        """What is known to be wrong so far; all of it (or the first 20) after `finish`."""
        return self._problems or ()

    def feed(self, content: bytes | bytearray) -> None:
        """Take the next piece; once there are `problems`, nothing more is looked at.

        Raises:
            TunesmithError: the checking process ended without an answer (`check_failed`).
        """
        if self._problems is not None:
            return
        if self._child is None:
            self._start += content
            if len(self._start) <= _IN_PLACE_BYTES:
                return
            self._child = _start_child()
            content, self._start = self._start, bytearray()
        assert self._child.stdin is not None
        waiting = memoryview(content)
        try:
            while waiting:
                waiting = waiting[self._child.stdin.write(waiting) :]
        except BrokenPipeError:
            # It has heard enough.
            self._problems = self._answer(self._child)

    def finish(self) -> None:
        """Say that the content is whole, and wait for the answer.

        Raises:
            TunesmithError: the checking process ended without an answer (`check_failed`).
        """
        if self._problems is not None:
            return
        self._problems = problems_of(io.BytesIO(self._start)) if self._child is None else self._answer(self._child)

    def close(self) -> None:
        """End the checking process, wherever it is; twice is fine."""
        if self._child is not None and self._child.poll() is None:
            self._child.kill()
        if self._child is not None:
            self._close_input(self._child)
            self._child.wait()
            if self._child.stdout is not None:
                self._child.stdout.close()

    def _answer(self, child: subprocess.Popen[bytes]) -> tuple[LineProblem, ...]:
        assert child.stdout is not None
        self._close_input(child)
        told = child.stdout.read()
        if child.wait() != 0:
            raise TunesmithError(
                "The process that checks this file ended without an answer.",
                fix="Try again; if it stays so, see whether the machine is short of memory.",
                code="check_failed",
            )
        found: list[dict[str, Any]] = json.loads(told)
        return tuple(LineProblem(**one) for one in found)

    @staticmethod
    def _close_input(child: subprocess.Popen[bytes]) -> None:
        assert child.stdin is not None
        try:
            child.stdin.close()
        except BrokenPipeError:
            # It has ended already; its answer says why.
            return


def _start_child() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", __name__]
    # Unbuffered: pieces are large already, and a buffer would have to be flushed into a pipe that may be closed.
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)


def main() -> None:
    """Check what comes in; write the problems as one JSON list."""
    found = problems_of(sys.stdin.buffer)
    sys.stdout.write(json.dumps([asdict(one) for one in found]))


if __name__ == "__main__":
    main()
