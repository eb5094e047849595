"""A finished run's metrics as `metrics.parquet`. Import this file only when needed: pyarrow is slow to start."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from tunesmith.record.atomic import write_bytes


def write_parquet(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write rows as a Parquet file, whole or not at all; a key that a row lacks is null.

    Raises:
        StorageError: the disk is full or the folder can't be written.
    """
    listed = list(rows)
    names = list(dict.fromkeys(name for row in listed for name in row))
    columns = {name: _column([row.get(name) for row in listed]) for name in names}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    write_bytes(path, buffer.getvalue())


def read_parquet(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a Parquet file; keys that were absent from a row come back as None."""
    return cast("list[dict[str, Any]]", pq.read_table(path).to_pylist())


def _column(values: list[Any]) -> Any:
    """Return an Arrow column; whole numbers among fractions become fractions."""
    if any(isinstance(value, float) for value in values):
        return pa.array([None if value is None else float(value) for value in values], type=pa.float64())
    return pa.array(values)
