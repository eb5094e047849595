"""`/v1/fine_tuning/checkpoints/{model}/permissions`: who may use a job's model beside the project that made it.

As with OpenAI's service these calls take an admin key (`tunesmith keys create NAME --admin`). What is shared, and with
whom, is a matter of the whole installation, so it reaches models of every project.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from tunesmith.record.database import Database
from tunesmith.record.job_models import find_job_model
from tunesmith.record.pages import Listed, Page
from tunesmith.record.permissions import Permission, end_permission, list_permissions, share_model
from tunesmith.rest.bodies import read_body
from tunesmith.rest.caller import Caller
from tunesmith.rest.errors import WireError, WireFault, model_not_found
from tunesmith.rest.files import FromCaller, FromPlatform
from tunesmith.rest.intake import in_thread
from tunesmith.rest.paging import After, Limit, WireList, WireObject, list_of, page_of
from tunesmith.rest.schema import json_body

_MOST_PROJECTS = 1000

router = APIRouter(prefix="/v1/fine_tuning/checkpoints")
Order = Annotated[Literal["ascending", "descending"], Query(description="`descending`: the newest first.")]


class SharePermissions(BaseModel):
    """The projects that may use the model from now on."""

    model_config = ConfigDict(extra="forbid", strict=True)

    project_ids: list[str] = Field(min_length=1, max_length=_MOST_PROJECTS)


class WirePermission(WireObject):
    """A permission on the wire."""

    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    created_at: int
    project_id: str


class DeletedPermission(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    deleted: bool = True


@router.get("/{model:path}/permissions")
async def list_checkpoint_permissions(
    model: str,
    platform: FromPlatform,
    caller: FromCaller,
    limit: Limit = 10,
    after: After = None,
    order: Order = "descending",
    project_id: str | None = None,
) -> WireList[WirePermission]:
    """List the projects that a model was shared with."""
    _check_admin(caller)
    find = partial(_listed, platform.database, model, page_of(limit, after, order), project_id)
    found = await in_thread(platform.keeping_threads, find)
    return list_of([_wire_permission(one) for one in found.items], has_more=found.has_more)


@router.post("/{model:path}/permissions", openapi_extra=json_body(SharePermissions))
async def create_checkpoint_permissions(
    model: str, http: Request, platform: FromPlatform, caller: FromCaller
) -> WireList[WirePermission]:
    """Share a model with projects; those that may use it already keep their permission."""
    _check_admin(caller)
    body = await read_body(http, SharePermissions)
    share = partial(_shared, platform.database, model, body.project_ids)
    shared = await in_thread(platform.keeping_threads, share)
    return list_of([_wire_permission(one) for one in shared], has_more=False)


@router.delete("/{model:path}/permissions/{permission_id}")
async def delete_checkpoint_permission(
    model: str, permission_id: str, platform: FromPlatform, caller: FromCaller
) -> DeletedPermission:
    """Take a permission back; answers that have begun are finished."""
    _check_admin(caller)
    end = partial(_ended, platform.database, model, permission_id)
    if not await in_thread(platform.keeping_threads, end):
        message = f"No such checkpoint permission: {permission_id[:200]}"
        raise WireFault(WireError(404, message, "permission_not_found", "permission_id"))
    return DeletedPermission(id=permission_id)


def _check_admin(caller: Caller) -> None:
    """Refuse a key that isn't an administrator's.

    Raises:
        WireFault: it isn't.
    """
    if not caller.is_admin:
        message = "This call takes an admin key; `tunesmith keys create NAME --admin` makes one."
        raise WireFault(WireError(403, message, "admin_key_needed"))


def _wire_permission(permission: Permission) -> WirePermission:
    return WirePermission(id=permission.id, created_at=permission.created_at, project_id=permission.project_id)


def _listed(database: Database, model: str, page: Page, project_id: str | None) -> Listed[Permission]:
    with database.read() as connection:
        if find_job_model(connection, model) is None:
            raise WireFault(model_not_found(model))
        return list_permissions(connection, model, page, project_id=project_id)


def _shared(database: Database, model: str, project_ids: Sequence[str]) -> list[Permission]:
    with database.write() as connection:
        if find_job_model(connection, model) is None:
            raise WireFault(model_not_found(model))
        return share_model(connection, model, project_ids)


def _ended(database: Database, model: str, permission_id: str) -> bool:
    with database.write() as connection:
        if find_job_model(connection, model) is None:
            raise WireFault(model_not_found(model))
        return end_permission(connection, model, permission_id)
