"""Rows of JSONL: one JSON object a line, read with a line's worth of memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from tunesmith.data.examples import Place
from tunesmith.data.problems import RowProblem
from tunesmith.data.rows import Row
from tunesmith.data.strict_json import JsonFault, parse_json
from tunesmith.errors import DataError

#: A line longer than this is skipped unread and reported, so that memory stays bounded.
MAX_LINE_BYTES = 16 * 2**20

_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def lines_of(stream: BinaryIO, name: str) -> Iterator[tuple[int, bytes | None]]:
    """Yield (1-based number, line with its end) of a file; None stands for a line longer than `MAX_LINE_BYTES`."""
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if number == 1:
            line = without_mark(line, name)
        if len(line) <= MAX_LINE_BYTES:
            yield number, line
            continue
        # First told, then skipped: who has heard enough needn't read on.
        yield number, None
        while line and not line.endswith(b"\n"):
            line = stream.readline(MAX_LINE_BYTES)


def without_mark(start: bytes, name: str) -> bytes:
    """Return a file's first bytes without their byte-order mark.

    Raises:
        DataError: it is UTF-16 (`invalid_encoding`).
    """
    if start.startswith(_UTF16_MARKS):
        raise DataError(
            "This file is UTF-16 (byte 1 is its byte-order mark); rows are read as UTF-8.",
            where=f"{name}, line 1",
            fix="Save it as UTF-8: `iconv -f UTF-16 -t UTF-8 old > new`.",
            code="invalid_encoding",
        )
    return start.removeprefix(b"\xef\xbb\xbf")


def jsonl_rows(lines: Iterator[tuple[int, bytes | None]], name: str) -> Iterator[Row | RowProblem]:
    """Yield the rows of numbered lines, and a `RowProblem` for each line that isn't one; blank lines are skipped."""
    for number, line in lines:
        place = Place(name, number)
        if line is None:
            yield RowProblem(
                place,
                "",
                f"This line is longer than {MAX_LINE_BYTES // 2**20} MiB.",
                "Write one example a line, and split or shorten this one.",
                "line_too_long",
            )
            continue
        if not line.strip():
            continue
        try:
            value = parse_json(line)
        except JsonFault as fault:
            fix = fault.fix
            if number == 1 and fault.code == "invalid_json" and line.strip() == b"[":
                fix = "This looks like a JSON array over several lines: name the file .json."
            yield RowProblem(place, "", fault.message, fix, fault.code)
        else:
            yield row_of(place, value)


def row_of(place: Place, value: Any) -> Row | RowProblem:
    """Return a JSON value as a row, or why it isn't one."""
    if isinstance(value, dict):
        return Row(place, value)
    kind = {list: "array", str: "text", bool: "true or false", type(None): "null"}.get(type(value), "number")
    fix = "Write each row as an object: {...}."
    if isinstance(value, list) and place.unit == "line":
        fix = "Write one object a line, or name the file .json if this array holds all rows."
    return RowProblem(place, "", f"A row is a JSON object, and this is a JSON {kind}.", fix, "not_an_object")
