"""Fine-tuning jobs: what was asked, in which state it is, what came of it.

Functions take a connection, so that a caller can put several changes, and the events that tell of them, into one block
that happens whole or not at all.

    with database.write() as connection:
        job = create_job(connection, NewJob(...))
        add_event(connection, job.id, NewEvent(...))

States go `validating_files` -> `queued` -> `running` -> `succeeded` or `failed`; `cancelled` from any that is no end;
`running` -> `pausing` -> `paused` -> `queued`. What else is asked is refused with a `JobStateError`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, cast

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, exists, select, update

from tunesmith.errors import RunError
from tunesmith.record.ids import new_id
from tunesmith.record.pages import Listed, Page, rows_of
from tunesmith.record.tables import job_metadata, jobs
from tunesmith.record.webhooks import JOB_ENDS, announce

State = Literal["validating_files", "queued", "running", "pausing", "paused", "succeeded", "failed", "cancelled"]

#: What ends a job; nothing changes it afterwards.
ENDS: frozenset[State] = frozenset({"succeeded", "failed", "cancelled"})
#: States in which a worker may hold the job.
HELD: tuple[State, ...] = ("validating_files", "running", "pausing")
_NEXT: Mapping[State, frozenset[State]] = {
    "validating_files": frozenset({"queued", "failed", "cancelled"}),
    "queued": frozenset({"running", "failed", "cancelled"}),
    "running": frozenset({"queued", "pausing", "succeeded", "failed", "cancelled"}),
    "pausing": frozenset({"running", "queued", "paused", "succeeded", "failed", "cancelled"}),
    "paused": frozenset({"queued", "cancelled"}),
    "succeeded": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}


class JobStateError(RunError):
    """What was asked can't be done to a job in its state."""

    def __init__(self, job_id: str, state: State, asked: str) -> None:
        """Tell the state, and what was asked."""
        super().__init__(
            f"Job {job_id} is {state.replace('_', ' ')}; it can't be {asked}.",
            fix="Look at the job's status first.",
            code="job_state",
        )
        self.state = state


@dataclass(frozen=True, slots=True)
class NewJob:
    """What is asked.

    Attributes:
        project_id: whose it is.
        model: the model as asked for.
        base: the base that it means here.
        seed: of everything random.
        method: the method with its hyperparameters, as asked, for replies.
        spec: settings of a `TuneSpec` without its base, data, name and seed.
        training_file: the file's id, and its content, which the job keeps.
        hyperparameters: `n_epochs`, `batch_size`, `learning_rate_multiplier`: numbers or `auto`.
        suffix: the part of the result's name that the user chose.
        priority: higher ones go first.
        id: the id that it gets, where a request that is repeated must not make a second job; None draws one.
    """

    project_id: str
    model: str
    base: str
    seed: int
    method: Mapping[str, Any]
    spec: Mapping[str, Any]
    training_file: str
    training_sha256: str
    hyperparameters: Mapping[str, Any] | None = None
    validation_file: str | None = None
    validation_sha256: str | None = None
    suffix: str | None = None
    integrations: Sequence[Any] | None = None
    metadata: Mapping[str, str] | None = None
    priority: int = 0
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the record has it.

    Attributes:
        seq: its place in lists.
        error: `code`, `message` and `param` of a failed one.
        fence: the number of the attempt that may write.
        attempts: attempts since the last progress.
        step: the newest step whose weights are kept.
    """

    seq: int
    id: str
    created_at: int
    project_id: str
    state: State
    model: str
    base: str
    suffix: str | None
    metadata: dict[str, str] | None
    seed: int
    method: dict[str, Any]
    hyperparameters: dict[str, Any] | None
    integrations: list[Any] | None
    spec: dict[str, Any]
    training_file: str
    training_sha256: str
    validation_file: str | None
    validation_sha256: str | None
    priority: int
    not_before: int
    attempts: int
    lease_owner: str | None
    beat: int
    fence: int
    step: int
    started_at: int | None
    finished_at: int | None
    estimated_finish: int | None
    trained_tokens: int | None
    fine_tuned_model: str | None
    result_files: list[str] | None
    error: dict[str, Any] | None

    @property
    def is_over(self) -> bool:
        """Whether it has reached an end."""
        return self.state in ENDS


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs of a project a list shows: all, those with these metadata, or those without any."""

    project_id: str
    metadata: Mapping[str, str] | None = None
    without_metadata: bool = False


def create_job(connection: Connection, new: NewJob) -> Job:
    """Add a job, in the state `validating_files`."""
    values = {field.name: getattr(new, field.name) for field in fields(new)}
    values |= {"id": new.id or new_id("ftjob-"), "created_at": int(time.time()), "state": "validating_files"}
    row = connection.execute(jobs.insert().values(**values).returning(jobs))
    job = job_of(row.mappings().one())
    if new.metadata:
        pairs = [{"job_id": job.id, "key": key, "value": value} for key, value in new.metadata.items()]
        connection.execute(job_metadata.insert(), pairs)
    return job


def get_job(connection: Connection, job_id: str, *, project_id: str | None = None) -> Job:
    """Return a job; where a project is given, only one of its own.

    Raises:
        RunError: there is none (`job_not_found`).
    """
    wanted = select(jobs).where(jobs.c.id == job_id)
    if project_id is not None:
        wanted = wanted.where(jobs.c.project_id == project_id)
    row = connection.execute(wanted).mappings().first()
    if row is None:
        raise RunError(f"There is no job {job_id}.", fix="List the jobs.", code="job_not_found")
    return job_of(row)


def job_here(connection: Connection, job_id: str, project_id: str) -> Job | None:
    """Return a project's job, or None where it has none of this id."""
    found = select(jobs).where(jobs.c.id == job_id, jobs.c.project_id == project_id)
    row = connection.execute(found).mappings().first()
    return None if row is None else job_of(row)


def list_jobs(connection: Connection, wanted: JobFilter, page: Page) -> Listed[Job]:
    """Return a page of a project's jobs.

    Raises:
        RequestError: there is no such cursor.
    """
    found = rows_of(connection, jobs, page, jobs.c.project_id == wanted.project_id, *_conditions(wanted))
    return Listed(tuple(job_of(row._mapping) for row in found.items), found.has_more)


def move_job(connection: Connection, job: Job, to: State, asked: str, **changes: Any) -> Job:
    """Bring a job into another state.

    At an end nobody holds the job any more, what attempts still write is refused, and webhooks are told.

    Args:
        connection: one that writes.
        job: as it is in this connection's eyes.
        to: the new state.
        asked: what is done to it, for the error: `cancelled`, `paused`.
        changes: columns to set as well.

    Raises:
        JobStateError: the one doesn't follow the other.
    """
    if to not in _NEXT[job.state]:
        raise JobStateError(job.id, job.state, asked)
    if to in ENDS:
        changes = {"finished_at": int(time.time()), "estimated_finish": None, **changes}
    if to not in HELD:
        changes = {"lease_owner": None, "fence": job.fence + 1, **changes}
    moved = change_job(connection, job.id, state=to, **changes)
    if moved.is_over:
        announce(connection, moved.project_id, JOB_ENDS[to], moved.id)
    return moved


def change_job(connection: Connection, job_id: str, **changes: Any) -> Job:
    """Set columns of a job."""
    row = connection.execute(update(jobs).where(jobs.c.id == job_id).values(**changes).returning(jobs))
    return job_of(row.mappings().one())


def job_of(row: RowMapping) -> Job:
    """Return a row of the table as a job."""
    return Job(**cast("dict[str, Any]", dict(row)))


def _conditions(wanted: JobFilter) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    for key, value in (wanted.metadata or {}).items():
        pair = and_(job_metadata.c.job_id == jobs.c.id, job_metadata.c.key == key, job_metadata.c.value == value)
        found.append(exists().where(pair))
    if wanted.without_metadata:
        found.append(~exists().where(job_metadata.c.job_id == jobs.c.id))
    return found
