"""Read the rows of a file, one at a time, each with its place: JSONL, JSON, CSV, TSV, Parquet, each also .gz.

What breaks a single row comes back as a `RowProblem` among the rows, so that the caller can gather all of them or
leave them out; what breaks the whole file is raised.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from tunesmith.data.examples import Place
from tunesmith.data.problems import RowProblem
from tunesmith.data.rows import Row
from tunesmith.data.strict_json import JsonFault, parse_json
from tunesmith.data.tables import csv_rows, parquet_rows
from tunesmith.errors import DataError

#: A line longer than this is skipped unread and reported, so that memory stays bounded.
MAX_LINE_BYTES = 16 * 2**20
#: Files that must be held whole (.json, .parquet.gz) may be this large; larger ones belong in JSONL.
MAX_WHOLE_BYTES = 2**30

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def read_rows(path: str | Path) -> Iterator[Row | RowProblem]:
    """Yield the rows of the file at `path` in order, and a `RowProblem` for each row that can't be read.

    A byte-order mark, CRLF line ends, blank lines and a missing last newline are all fine.

    Raises:
        DataError: at the call: no such file (`file_not_found`), a folder or an unknown suffix
            (`unsupported_file`). While reading: no rows (`too_few_examples`), not UTF-8 (`invalid_encoding`), a broken
            archive or table (`broken_gzip`, `broken_csv`, `broken_parquet`), JSON that isn't rows (`invalid_json`,
            `unsupported_json`), more than memory should hold (`file_too_large`).
    """
    file = Path(path).expanduser()
    name = str(path)
    suffix = _suffix(file, name)
    return _rows(file, name, suffix)


def _suffix(file: Path, name: str) -> str:
    if file.is_dir():
        raise DataError(
            "This is a folder; rows are read from one file, and only documents from folders.",
            where=name,
            fix="Name a file in it.",
            code="unsupported_file",
        )
    if not file.exists():
        raise DataError("There is no such file.", where=name, fix="Check the path.", code="file_not_found")
    plain = file.with_suffix("") if file.suffix.lower() == ".gz" else file
    suffix = plain.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(
            f"Files ending in {plain.suffix or 'nothing'} can't be read."
            if plain.suffix
            else "This file's name has no ending that says what is in it.",
            where=name,
            fix=f"Save the rows as one of {', '.join(SUFFIXES)} (each also .gz).",
            code="unsupported_file",
        )
    return suffix


def _rows(file: Path, name: str, suffix: str) -> Iterator[Row | RowProblem]:
    any_rows = False
    with read_errors(name), open_file(file) as stream:
        if suffix == ".parquet":
            found = parquet_rows(_whole(stream, name) if file.suffix.lower() == ".gz" else file, name)
        elif suffix in (".csv", ".tsv"):
            found = csv_rows(_lines(stream, name), name, suffix)
        elif suffix == ".json":
            found = _json_rows(stream, name)
        else:
            found = _jsonl_rows(_lines(stream, name), name)
        for row in found:
            any_rows = True
            yield row
    if not any_rows:
        raise DataError(
            "This file holds no rows.",
            where=name,
            fix="Put at least 10 examples in it, one a line.",
            code="too_few_examples",
        )


def open_file(file: Path) -> BinaryIO:
    """Open a file for reading, unpacked if its name ends in .gz."""
    stream = file.open("rb")
    # GzipFile reads like any binary file, but its type doesn't say so.
    return cast(BinaryIO, gzip.GzipFile(fileobj=stream)) if file.suffix.lower() == ".gz" else stream


@contextmanager
def read_errors(name: str) -> Iterator[None]:
    """Turn what goes wrong while a file is read into errors that name it.

    Raises:
        DataError: a broken archive (`broken_gzip`), or a file that can't be read (`unreadable_file`).
    """
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"This gzip file is broken: {error}.",
            where=name,
            fix="Compress the file again, or pass it uncompressed.",
            code="broken_gzip",
        ) from error
    except OSError as error:
        raise DataError(
            f"This file can't be read: {error.strerror or error}.",
            where=name,
            fix="Check its permissions and the disk.",
            code="unreadable_file",
        ) from error


def _lines(stream: BinaryIO, name: str) -> Iterator[tuple[int, bytes | None]]:
    """Yield (1-based number, line with its end) of a file; None stands for a line longer than `MAX_LINE_BYTES`."""
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if number == 1:
            line = without_mark(line, name)
        if len(line) <= MAX_LINE_BYTES:
            yield number, line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(MAX_LINE_BYTES)
        yield number, None


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


def _jsonl_rows(lines: Iterator[tuple[int, bytes | None]], name: str) -> Iterator[Row | RowProblem]:
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
            yield _row(place, value)


def _row(place: Place, value: Any) -> Row | RowProblem:
    if isinstance(value, dict):
        return Row(place, value)
    kind = {list: "array", str: "text", bool: "true or false", type(None): "null"}.get(type(value), "number")
    fix = "Write each row as an object: {...}."
    if isinstance(value, list) and place.unit == "line":
        fix = "Write one object a line, or name the file .json if this array holds all rows."
    return RowProblem(place, "", f"A row is a JSON object, and this is a JSON {kind}.", fix, "not_an_object")


def _whole(stream: BinaryIO, name: str) -> bytes:
    raw = stream.read(MAX_WHOLE_BYTES + 1)
    if len(raw) > MAX_WHOLE_BYTES:
        raise DataError(
            f"This file is larger than {MAX_WHOLE_BYTES // 2**30} GiB and can't be held in memory.",
            where=name,
            fix="Convert it to JSONL (one object a line), which is read line by line.",
            code="file_too_large",
        )
    return raw


def _json_rows(stream: BinaryIO, name: str) -> Iterator[Row | RowProblem]:
    raw = without_mark(_whole(stream, name), name)
    if not raw.strip():
        return
    if _is_jsonl(raw):
        yield from _jsonl_rows(enumerate(raw.splitlines(keepends=True), start=1), name)
        return
    try:
        value = parse_json(raw)
    except JsonFault as fault:
        where = f"{name}, line {fault.line}"
        raise DataError(fault.message, where=where, fix=fault.fix, code=fault.code) from fault
    for index, item in enumerate(_list_of_rows(value, name), start=1):
        yield _row(Place(name, index, "row"), item)


def _is_jsonl(raw: bytes) -> bool:
    """Whether the first line is a whole object and more follows: JSONL under the name .json, which is common."""
    first, _, rest = raw.lstrip().partition(b"\n")
    if not first.startswith(b"{") or not rest.strip():
        return False
    try:
        parse_json(first)
    except JsonFault:
        return False
    return True


def _list_of_rows(value: Any, name: str) -> list[Any]:
    if isinstance(value, list):
        return value
    lists = [key for key, item in value.items() if isinstance(item, list)] if isinstance(value, dict) else []
    if len(lists) == 1:
        rows: list[Any] = value[lists[0]]
        return rows
    found = f"this object has {len(lists)} lists ({', '.join(lists[:5])})" if lists else "this file has no list"
    raise DataError(
        f"A JSON file is an array of objects, or an object with one list of them; {found}.",
        where=name,
        fix="Save only the list of rows, or write JSONL (one object a line).",
        code="unsupported_json",
    )
