"""What jobs tell: events in the order of writing, and checkpoints.

An event of a training step is told once, however many attempts take the step: a resumed attempt tells only of steps
that nobody has told of yet. So followers see each step once, in order.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from sqlalchemy import Connection, RowMapping, delete, func, select

from tunesmith.record.ids import new_id
from tunesmith.record.pages import Listed, Page, rows_of
from tunesmith.record.tables import events, job_checkpoints

Level = Literal["info", "warn", "error"]


@dataclass(frozen=True, slots=True)
class NewEvent:
    """What is told; `type` is `message` or `metrics`, `step` the training step of metrics."""

    message: str
    level: Level = "info"
    type: str = "message"
    data: Mapping[str, Any] | None = None
    step: int | None = None


@dataclass(frozen=True, slots=True)
class JobEvent:
    """An event as the record has it; `seq` is its place in lists."""

    seq: int
    id: str
    created_at: int
    job_id: str
    level: Level
    type: str
    message: str
    data: dict[str, Any] | None
    step: int | None


@dataclass(frozen=True, slots=True)
class JobCheckpoint:
    """Weights of a job that can be asked: `model` is their name, `folder` that of the registry."""

    seq: int
    id: str
    created_at: int
    project_id: str
    job_id: str
    step: int
    model: str
    folder: str
    metrics: dict[str, Any]


def add_events(connection: Connection, job_id: str, told: Sequence[NewEvent]) -> None:
    """Add events, in order; those of steps that are told already are left out."""
    last = last_told_step(connection, job_id) if any(one.step is not None for one in told) else 0
    now = int(time.time())
    rows = [
        {
            "id": new_id("ftevent-"),
            "created_at": now,
            "job_id": job_id,
            "level": one.level,
            "type": one.type,
            "message": one.message,
            "data": None if one.data is None else dict(one.data),
            "step": one.step,
        }
        for one in told
        if one.step is None or one.step > last
    ]
    for row in rows:
        connection.execute(events.insert().values(**row))


def last_told_step(connection: Connection, job_id: str) -> int:
    """Return the newest training step that events tell of; 0: none."""
    return int(connection.scalar(select(func.max(events.c.step)).where(events.c.job_id == job_id)) or 0)


def list_events(connection: Connection, job_id: str, page: Page) -> Listed[JobEvent]:
    """Return a page of a job's events.

    Raises:
        RequestError: there is no such cursor.
    """
    found = rows_of(connection, events, page, events.c.job_id == job_id)
    return Listed(tuple(_event_of(row._mapping) for row in found.items), found.has_more)


def newest_event_seq(connection: Connection) -> int:
    """Return the place of the newest event of all jobs; it grows with each event."""
    return int(connection.scalar(select(func.max(events.c.seq))) or 0)


def add_checkpoint(
    connection: Connection, job_id: str, project_id: str, step: int, model: str, folder: str, metrics: Mapping[str, Any]
) -> JobCheckpoint:
    """Add a checkpoint; one of the same step is replaced."""
    connection.execute(
        delete(job_checkpoints).where(job_checkpoints.c.job_id == job_id, job_checkpoints.c.step == step)
    )
    row = connection.execute(
        job_checkpoints.insert()
        .values(
            id=new_id("ftckpt_"),
            created_at=int(time.time()),
            project_id=project_id,
            job_id=job_id,
            step=step,
            model=model,
            folder=folder,
            metrics=dict(metrics),
        )
        .returning(job_checkpoints)
    )
    return _checkpoint_of(row.mappings().one())


def list_checkpoints(connection: Connection, job_id: str, page: Page) -> Listed[JobCheckpoint]:
    """Return a page of a job's checkpoints; they are added in the order of their steps.

    Raises:
        RequestError: there is no such cursor.
    """
    found = rows_of(connection, job_checkpoints, page, job_checkpoints.c.job_id == job_id)
    return Listed(tuple(_checkpoint_of(row._mapping) for row in found.items), found.has_more)


def all_checkpoints(connection: Connection, job_id: str) -> list[JobCheckpoint]:
    """Return all checkpoints of a job, that of the lowest step first."""
    query = select(job_checkpoints).where(job_checkpoints.c.job_id == job_id).order_by(job_checkpoints.c.step)
    return [_checkpoint_of(row) for row in connection.execute(query).mappings()]


def remove_checkpoint(connection: Connection, checkpoint: JobCheckpoint) -> None:
    """Take a checkpoint off the list; its weights are the registry's business."""
    connection.execute(delete(job_checkpoints).where(job_checkpoints.c.seq == checkpoint.seq))


def _event_of(row: RowMapping) -> JobEvent:
    return JobEvent(**cast("dict[str, Any]", dict(row)))


def _checkpoint_of(row: RowMapping) -> JobCheckpoint:
    return JobCheckpoint(**cast("dict[str, Any]", dict(row)))
