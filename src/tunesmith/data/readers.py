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
from tunesmith.data.jsonl import jsonl_rows, lines_of, row_of, without_mark
from tunesmith.data.problems import RowProblem
from tunesmith.data.rows import Row
from tunesmith.data.strict_json import JsonFault, parse_json
from tunesmith.data.tables import csv_rows, parquet_rows
from tunesmith.errors import DataError

#: Files that must be held whole (.json, .parquet.gz) may be this large; larger ones belong in JSONL.
MAX_WHOLE_BYTES = 2**30

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")


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
            found = csv_rows(lines_of(stream, name), name, suffix)
        elif suffix == ".json":
            found = _json_rows(stream, name)
        else:
            found = jsonl_rows(lines_of(stream, name), name)
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
        yield from jsonl_rows(enumerate(raw.splitlines(keepends=True), start=1), name)
        return
    try:
        value = parse_json(raw)
    except JsonFault as fault:
        where = f"{name}, line {fault.line}"
        raise DataError(fault.message, where=where, fix=fault.fix, code=fault.code) from fault
    for index, item in enumerate(_list_of_rows(value, name), start=1):
        yield row_of(Place(name, index, "row"), item)


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
