"""A record full of files, jobs and events, written without a server in between."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Table

from load.server import LoadServer
from tunesmith.record.access import DEFAULT_PROJECT
from tunesmith.record.blobs import name_blob
from tunesmith.record.database import Database
from tunesmith.record.home import Home
from tunesmith.record.ids import new_id
from tunesmith.record.store import Blob, Store
from tunesmith.record.tables import events, files, jobs

_ROWS_AT_ONCE = 5_000


def add_blob(home: Home, database: Database, content: bytes) -> Blob:
    """Put content into the store."""
    store = Store.from_environment(home)
    blob = store.add(content)
    with database.write() as connection:
        name_blob(connection, store, blob)
    return blob


def fill(server: LoadServer, file_count: int, job_count: int, event_count: int) -> None:
    """Add so many files, jobs that are over, and events, evenly among the jobs."""
    blob = add_blob(server.home, server.database, b'{"messages": []}\n' * 10)
    _insert(server.database, files, _files(file_count, blob))
    ids = [new_id("ftjob-") for _ in range(job_count)]
    _insert(server.database, jobs, _jobs(ids, blob))
    _insert(server.database, events, _events(ids, event_count))


def _files(count: int, blob: Blob) -> Iterator[dict[str, Any]]:
    now = int(time.time())
    for number in range(count):
        yield {
            "id": new_id("file-"),
            "created_at": now,
            "project_id": DEFAULT_PROJECT,
            "filename": f"rows-{number}.jsonl",
            "purpose": "fine-tune",
            "bytes": blob.bytes,
            "sha256": blob.sha256,
            "status": "processed",
        }


def _jobs(ids: Sequence[str], blob: Blob) -> Iterator[dict[str, Any]]:
    now = int(time.time())
    for number, job_id in enumerate(ids):
        yield {
            "id": job_id,
            "created_at": now,
            "project_id": DEFAULT_PROJECT,
            "state": "succeeded",
            "model": "smollm2-135m",
            "base": "smollm2-135m",
            "seed": number,
            "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}},
            "hyperparameters": {"n_epochs": 3, "batch_size": 8, "learning_rate_multiplier": 1.0},
            "spec": {},
            "training_file": "file-none",
            "training_sha256": blob.sha256,
            "started_at": now,
            "finished_at": now,
        }


def _events(ids: Sequence[str], count: int) -> Iterator[dict[str, Any]]:
    now = int(time.time())
    for number in range(count):
        step = number // len(ids) + 1
        yield {
            "id": new_id("ftevent-"),
            "created_at": now,
            "job_id": ids[number % len(ids)],
            "level": "info",
            "type": "metrics",
            "message": f"Step {step}: training loss=1.23",
            "data": {"step": step, "train_loss": 1.23},
            "step": step,
        }


def _insert(database: Database, table: Table, rows: Iterator[dict[str, Any]]) -> None:
    while batch := [row for _, row in zip(range(_ROWS_AT_ONCE), rows, strict=False)]:
        with database.write() as connection:
            connection.execute(table.insert(), batch)
