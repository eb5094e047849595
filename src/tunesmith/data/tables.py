"""Rows of tables: CSV, TSV and Parquet."""

from __future__ import annotations

import base64
import csv
import datetime as dt
import decimal
import io
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tunesmith.data.examples import Place
from tunesmith.data.problems import RowProblem
from tunesmith.data.rows import Row
from tunesmith.data.strict_json import JsonFault, decode_text
from tunesmith.errors import DataError

#: Longest cell of a CSV file, in characters.
MAX_CELL_CHARACTERS = 16 * 2**20


def csv_rows(lines: Iterator[tuple[int, bytes | None]], name: str, suffix: str) -> Iterator[Row | RowProblem]:
    """Yield the rows of a CSV (RFC 4180; `,`, `;` or tab, whichever the header has most of) or TSV file.

    All values are text. A row's line is the first of its lines.

    Raises:
        DataError: not UTF-8 (`invalid_encoding`), a line of more than 16 MiB (`line_too_long`), two columns of one
            name (`broken_csv`).
    """
    texts = _texts(lines, name)
    opening: list[str] = []
    for text in texts:
        opening.append(text if text.strip() else "\n")
        if text.strip():
            break
    delimiter = "\t" if suffix == ".tsv" else max(",;\t", key=opening[-1].count) if opening else ","
    csv.field_size_limit(MAX_CELL_CHARACTERS)
    reader = csv.reader(itertools.chain(opening, texts), delimiter=delimiter, strict=True)
    columns: list[str] | None = None
    while True:
        place = Place(name, reader.line_num + 1)
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield RowProblem(
                place,
                "",
                f"This row isn't valid CSV: {error}.",
                'Put cells that hold quotes, commas or line ends in "double quotes", inner quotes doubled.',
                "broken_csv",
            )
            continue
        if cells is None:
            return
        if not cells or (len(cells) == 1 and not cells[0].strip()):  # a blank line
            continue
        if columns is None:
            columns = _columns(cells, name)
        else:
            yield _table_row(place, columns, cells)


def _texts(lines: Iterator[tuple[int, bytes | None]], name: str) -> Iterator[str]:
    for number, line in lines:
        if line is None:
            raise DataError(
                "This line is longer than 16 MiB.",
                where=f"{name}, line {number}",
                fix="Is a quote left open? Otherwise split or shorten the row.",
                code="line_too_long",
            )
        try:
            yield decode_text(line)
        except JsonFault as fault:
            raise DataError(fault.message, where=f"{name}, line {number}", fix=fault.fix, code=fault.code) from fault


def _columns(cells: list[str], name: str) -> list[str]:
    columns = [cell.strip() or f"column {number}" for number, cell in enumerate(cells, start=1)]
    doubled = {column for column in columns if columns.count(column) > 1}
    if doubled:
        raise DataError(
            f"Two columns have the name {sorted(doubled)[0]!r}.",
            where=f"{name}, header",
            fix="Give each column its own name in the first line.",
            code="broken_csv",
        )
    return columns


def _table_row(place: Place, columns: list[str], cells: list[str]) -> Row | RowProblem:
    if len(cells) != len(columns):
        return RowProblem(
            place,
            "",
            f"This row has {len(cells)} cells, and the header has {len(columns)}.",
            "Put cells that hold the separator or line ends in double quotes.",
            "broken_csv",
        )
    return Row(place, dict(zip(columns, cells, strict=True)))


def parquet_rows(source: Path | bytes, name: str) -> Iterator[Row | RowProblem]:
    """Yield the rows of a Parquet file. Dates and decimals become text, NaN (pandas' missing value) becomes None.

    Raises:
        DataError: `broken_parquet`.
    """
    try:
        table = pq.ParquetFile(io.BytesIO(source) if isinstance(source, bytes) else source)
        number = 0
        for batch in table.iter_batches(batch_size=512):
            for values in batch.to_pylist():
                number += 1
                yield Row(Place(name, number, "row"), _plain(values))
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"This Parquet file can't be read: {str(error).splitlines()[0]}",
            where=name,
            fix="Write the file again, or save the rows as JSONL.",
            code="broken_parquet",
        ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | dt.timedelta):
        return str(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value
