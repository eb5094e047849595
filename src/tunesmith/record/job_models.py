"""Models that jobs made: whose they are, and who else may use them.

A job's model is there for callers exactly as long as it is on its job's list of checkpoints, the result included. What
lies in the registry but on no list isn't whole yet, or was deleted; nobody sees it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, delete, exists, or_, select

from tunesmith.record.jobs import ENDS
from tunesmith.record.tables import job_checkpoints, jobs, permissions


@dataclass(frozen=True, slots=True)
class JobModel:
    """A model that a job made, and the project that it belongs to."""

    name: str
    project_id: str
    job_id: str


def find_job_model(connection: Connection, name: str) -> JobModel | None:
    """Return a job's model by its whole name, None where no job's list has it."""
    row = connection.execute(_wanted().where(job_checkpoints.c.model == name)).first()
    return None if row is None else _model(row)


def may_use(connection: Connection, name: str, project_id: str) -> bool:
    """Whether a job's model is a project's own, or was shared with it."""
    usable = _usable_by(project_id)
    return connection.execute(_wanted().where(job_checkpoints.c.model == name, usable)).first() is not None


def usable_models(connection: Connection, project_id: str) -> dict[str, JobModel]:
    """Return the models of jobs that a project may use, by name."""
    return {row.model: _model(row) for row in connection.execute(_wanted().where(_usable_by(project_id)))}


def is_start_of_job(connection: Connection, name: str) -> bool:
    """Whether a job that isn't over yet starts from a model."""
    wanted = select(jobs.c.seq).where(jobs.c.state.not_in(sorted(ENDS)), jobs.c.base == name)
    return connection.execute(wanted.limit(1)).first() is not None


def forget_model(connection: Connection, name: str) -> bool:
    """Take a job's model off its list, with what was shared of it; return whether it was there.

    Its files are the registry's business: delete them once this is durable.
    """
    connection.execute(delete(permissions).where(permissions.c.model == name))
    gone = connection.execute(delete(job_checkpoints).where(job_checkpoints.c.model == name))
    return gone.rowcount > 0


def forgotten_models(connection: Connection, names: Collection[tuple[str, str]]) -> set[str]:
    """Return which models nobody can see any more: their jobs are over, and no list has them.

    Args:
        connection: to read with.
        names: models with the ids of their jobs.
    """
    job_ids = {job_id for _, job_id in names}
    over = set(
        connection.scalars(select(jobs.c.id).where(jobs.c.id.in_(sorted(job_ids)), jobs.c.state.in_(sorted(ENDS))))
    )
    asked = [name for name, _ in names]
    listed = set(connection.scalars(select(job_checkpoints.c.model).where(job_checkpoints.c.model.in_(asked))))
    return {name for name, job_id in names if job_id in over and name not in listed}


def _wanted() -> Select[tuple[str, str, str]]:
    return select(job_checkpoints.c.model, job_checkpoints.c.project_id, job_checkpoints.c.job_id)


def _usable_by(project_id: str) -> ColumnElement[bool]:
    shared = and_(permissions.c.model == job_checkpoints.c.model, permissions.c.project_id == project_id)
    return or_(job_checkpoints.c.project_id == project_id, exists().where(shared))


def _model(row: Row[tuple[str, str, str]]) -> JobModel:
    return JobModel(row.model, row.project_id, row.job_id)
