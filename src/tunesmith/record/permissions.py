"""Who may use a job's model beside the project that made it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import Connection, RowMapping, delete, insert, select

from tunesmith.errors import RequestError
from tunesmith.record.ids import new_id
from tunesmith.record.pages import Listed, Page, rows_of
from tunesmith.record.tables import permissions, projects


@dataclass(frozen=True, slots=True)
class Permission:
    """A project that may use a model; `seq` is its place in lists."""

    seq: int
    id: str
    created_at: int
    project_id: str
    model: str


def share_model(connection: Connection, model: str, project_ids: Sequence[str]) -> list[Permission]:
    """Let projects use a model, and return what each has now; one that may already keeps its permission.

    Raises:
        RequestError: there is no such project (`project_not_found`); nobody gets anything.
    """
    wanted = list(dict.fromkeys(project_ids))
    here = projects.c.id.in_(wanted) & projects.c.archived_at.is_(None)
    known = set(connection.scalars(select(projects.c.id).where(here)))
    for number, project_id in enumerate(project_ids):
        if project_id not in known:
            raise RequestError(
                f"There is no project '{project_id[:100]}'.", code="project_not_found", param=f"project_ids[{number}]"
            )
    mine = permissions.c.project_id.in_(wanted) & (permissions.c.model == model)
    rows = connection.execute(select(permissions).where(mine)).mappings()
    found = {row["project_id"]: _permission(row) for row in rows}
    now = int(time.time())
    for project_id in wanted:
        if project_id not in found:
            values = {"id": new_id("cp_"), "created_at": now, "project_id": project_id, "model": model}
            row = connection.execute(insert(permissions).values(values).returning(permissions)).mappings().one()
            found[project_id] = _permission(row)
    return [found[project_id] for project_id in wanted]


def list_permissions(
    connection: Connection, model: str, page: Page, *, project_id: str | None = None
) -> Listed[Permission]:
    """Return a page of a model's permissions; where a project is given, only its own.

    Raises:
        RequestError: there is no such cursor.
    """
    filters = [] if project_id is None else [permissions.c.project_id == project_id]
    found = rows_of(connection, permissions, page, permissions.c.model == model, *filters)
    return Listed(tuple(_permission(row._mapping) for row in found.items), found.has_more)


def end_permission(connection: Connection, model: str, permission_id: str) -> bool:
    """Take a permission back; return whether there was one."""
    this = (permissions.c.model == model) & (permissions.c.id == permission_id)
    return connection.execute(delete(permissions).where(this)).rowcount > 0


def _permission(row: RowMapping) -> Permission:
    return Permission(**cast("dict[str, Any]", dict(row)))
