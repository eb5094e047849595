"""`/v1/webhook_endpoints`: whom a project wants to be told when its fine-tuning jobs end.

These endpoints are on the public internet, with https. Those on this machine or its network are for who runs it to
add: `tunesmith webhooks add --allow-private`.
"""

from __future__ import annotations

import asyncio
import re
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, delete

from tunesmith.errors import RequestError
from tunesmith.record.database import Database
from tunesmith.record.pages import Listed, Page
from tunesmith.record.tables import webhooks
from tunesmith.record.webhook_endpoints import (
    Webhook,
    change_webhook,
    check_webhook_name,
    list_webhooks,
    rotate_secret,
    webhook_here,
)
from tunesmith.record.webhooks import EVENT_TYPES, Webhooks
from tunesmith.rest.bodies import read_body
from tunesmith.rest.caller import Caller
from tunesmith.rest.errors import WireError, WireFault
from tunesmith.rest.files import FromCaller, FromPlatform
from tunesmith.rest.idempotency import id_for
from tunesmith.rest.intake import in_thread
from tunesmith.rest.paging import After, Limit, WireList, WireObject, list_of, page_of
from tunesmith.rest.platform import Platform
from tunesmith.rest.schema import json_body
from tunesmith.rest.webhook_sending import check_address, sample, send

router = APIRouter()
_PATH = "/v1/webhook_endpoints"
_ID = re.compile("we_[0-9A-Za-z]{1,64}")
#: Of a secret, so much is shown later on.
_HINT_CHARACTERS = 4

EventType = Literal["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]
_EventTypes = Annotated[list[EventType], Field(min_length=1, max_length=len(EVENT_TYPES))]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class CreateEndpoint(_Body):
    """What an endpoint is created with."""

    name: str
    url: str
    event_types: _EventTypes


class ChangeEndpoint(_Body):
    """What is to be another."""

    name: str | None = None
    url: str | None = None
    event_types: _EventTypes | None = None


class RotateSecret(_Body):
    """How a secret is replaced: whether the old one signs beside it for a day, while receivers change theirs."""

    keep_old_secret_active_for_24_hours: bool | None = None


class TryEndpoint(_Body):
    """Which event is sent to try an endpoint."""

    event_type: EventType


class WireEndpoint(WireObject):
    """An endpoint on the wire."""

    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    created_at: int
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str


class WireNewEndpoint(WireEndpoint):
    """An endpoint with its secret, which is told once."""

    signing_secret: str


class DeletedEndpoint(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: bool = True


class EndpointTest(BaseModel):
    """What an endpoint answered to an event that tells of no job."""

    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_type: str
    status_code: int
    success: Literal[True] = True


class WireEventTypes(BaseModel):
    """What endpoints can be told."""

    object: Literal["list"] = "list"
    data: list[str]


@router.get("/v1/webhook_event_types")
async def list_webhook_event_types() -> WireEventTypes:
    """List what endpoints can be told."""
    return WireEventTypes(data=list(EVENT_TYPES))


@router.post(_PATH, openapi_extra=json_body(CreateEndpoint))
async def create_webhook_endpoint(http: Request, platform: FromPlatform, caller: FromCaller) -> WireNewEndpoint:
    """Add an endpoint; its secret, by which it knows who sent an event, is told this once."""
    body = await read_body(http, CreateEndpoint)
    check_webhook_name(body.name)
    await asyncio.to_thread(check_address, body.url, allows_private=False)
    add = partial(
        Webhooks(platform.database).add,
        caller.project_id,
        body.name,
        body.url,
        body.event_types,
        id=id_for(http, "we_"),
    )
    return _wire_new(await in_thread(platform.keeping_threads, add))


@router.get(_PATH)
async def list_webhook_endpoints(
    platform: FromPlatform, caller: FromCaller, limit: Limit = 20, after: After = None
) -> WireList[WireEndpoint]:
    """List the endpoints of the caller's project, the newest first."""
    page = page_of(limit, after, "desc")
    find = partial(_listed, platform.database, caller.project_id, page)
    found = await in_thread(platform.keeping_threads, find)
    return list_of([WireEndpoint(**_shown(one)) for one in found.items], has_more=found.has_more)


@router.get(_PATH + "/{webhook_endpoint_id}")
async def retrieve_webhook_endpoint(
    webhook_endpoint_id: str, platform: FromPlatform, caller: FromCaller
) -> WireEndpoint:
    """Show an endpoint."""
    return WireEndpoint(**_shown(await _found(platform, caller, webhook_endpoint_id)))


@router.post(_PATH + "/{webhook_endpoint_id}", openapi_extra=json_body(ChangeEndpoint))
async def update_webhook_endpoint(
    webhook_endpoint_id: str, http: Request, platform: FromPlatform, caller: FromCaller
) -> WireEndpoint:
    """Change an endpoint. Events that wait for it go to its new URL."""
    webhook = await _found(platform, caller, webhook_endpoint_id)
    body = await read_body(http, ChangeEndpoint)
    changes: dict[str, Any] = {name: value for name, value in body if value is not None}
    if body.name is not None:
        check_webhook_name(body.name)
    if body.url is not None and body.url != webhook.url:
        await asyncio.to_thread(check_address, body.url, allows_private=webhook.allows_private)
    change = partial(_changed, platform.database, webhook, changes)
    return WireEndpoint(**_shown(await in_thread(platform.keeping_threads, change)))


@router.delete(_PATH + "/{webhook_endpoint_id}")
async def delete_webhook_endpoint(
    webhook_endpoint_id: str, platform: FromPlatform, caller: FromCaller
) -> DeletedEndpoint:
    """Remove an endpoint; what was still to be told to it isn't told any more."""
    webhook = await _found(platform, caller, webhook_endpoint_id)
    await in_thread(platform.keeping_threads, partial(_deleted, platform.database, webhook))
    return DeletedEndpoint(id=webhook.id)


@router.post(_PATH + "/{webhook_endpoint_id}/rotate_secret", openapi_extra=json_body(RotateSecret, is_required=False))
async def rotate_webhook_secret(
    webhook_endpoint_id: str, http: Request, platform: FromPlatform, caller: FromCaller
) -> WireNewEndpoint:
    """Replace an endpoint's secret; what is sent from now on is signed with the new one."""
    webhook = await _found(platform, caller, webhook_endpoint_id)
    body = await read_body(http, RotateSecret) if await http.body() else RotateSecret()
    rotate = partial(_rotated, platform.database, webhook, bool(body.keep_old_secret_active_for_24_hours))
    return _wire_new(await in_thread(platform.keeping_threads, rotate))


@router.post(_PATH + "/{webhook_endpoint_id}/test", openapi_extra=json_body(TryEndpoint))
async def test_webhook_endpoint(
    webhook_endpoint_id: str, http: Request, platform: FromPlatform, caller: FromCaller
) -> EndpointTest:
    """Send an endpoint an event of a job that doesn't exist, once, and say what it answered."""
    webhook = await _found(platform, caller, webhook_endpoint_id)
    body = await read_body(http, TryEndpoint)
    outcome = await asyncio.to_thread(send, webhook, sample(webhook, body.event_type))
    if outcome.status is None:
        raise RequestError(outcome.error or "The endpoint can't be reached.", code="webhook_failed", param="url")
    return EndpointTest(webhook_endpoint_id=webhook.id, event_type=body.event_type, status_code=outcome.status)


async def _found(platform: Platform, caller: Caller, webhook_id: str) -> Webhook:
    """Return an endpoint of a caller's project.

    Raises:
        WireFault: there is none.
    """
    find = partial(_find, platform.database, caller.project_id, webhook_id)
    return await in_thread(platform.keeping_threads, find)


def _find(database: Database, project_id: str, webhook_id: str) -> Webhook:
    with database.read() as connection:
        return _here(connection, project_id, webhook_id)


def _here(connection: Connection, project_id: str, webhook_id: str) -> Webhook:
    found = webhook_here(connection, project_id, webhook_id) if _ID.fullmatch(webhook_id) else None
    if found is None:
        message = f"No such webhook endpoint: {webhook_id[:200]}"
        raise WireFault(WireError(404, message, "webhook_endpoint_not_found", "webhook_endpoint_id"))
    return found


def _listed(database: Database, project_id: str, page: Page) -> Listed[Webhook]:
    with database.read() as connection:
        return list_webhooks(connection, project_id, page)


def _changed(database: Database, webhook: Webhook, changes: dict[str, Any]) -> Webhook:
    def change(connection: Connection) -> Webhook:
        return change_webhook(connection, _here(connection, webhook.project_id, webhook.id), **changes)

    return database.retry(change)


def _rotated(database: Database, webhook: Webhook, keeps_old: bool) -> Webhook:
    def rotate(connection: Connection) -> Webhook:
        return rotate_secret(connection, _here(connection, webhook.project_id, webhook.id), keeps_old=keeps_old)

    return database.retry(rotate)


def _deleted(database: Database, webhook: Webhook) -> None:
    database.retry(lambda connection: connection.execute(delete(webhooks).where(webhooks.c.id == webhook.id)))


def _shown(webhook: Webhook) -> dict[str, Any]:
    return {
        "id": webhook.id,
        "created_at": webhook.created_at,
        "name": webhook.name,
        "url": webhook.url,
        "event_types": list(webhook.event_types),
        "signing_secret_hint": f"...{webhook.secret[-_HINT_CHARACTERS:]}",
    }


def _wire_new(webhook: Webhook) -> WireNewEndpoint:
    return WireNewEndpoint(**_shown(webhook), signing_secret=webhook.secret)
