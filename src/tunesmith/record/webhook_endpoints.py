"""The endpoints of webhooks: whom a project wants to be told of its jobs' ends."""

from __future__ import annotations

import base64
import secrets
import time
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Row, select, update

from tunesmith.errors import RequestError
from tunesmith.record.column_types import is_storable
from tunesmith.record.pages import Listed, Page, rows_of
from tunesmith.record.tables import webhooks

_SECRET_PREFIX, _SECRET_BYTES = "whsec_", 32
_LONGEST_NAME = 100
_OLD_SECRET_SECONDS = 24 * 3600


@dataclass(frozen=True, slots=True)
class Webhook:
    """An endpoint; `secret` signs what it gets, `allows_private` lets it be on a network that isn't public.

    Until `old_secret_until` (Unix seconds), the secret that was replaced signs as well.
    """

    id: str
    created_at: int
    project_id: str
    name: str
    url: str
    secret: str
    event_types: tuple[str, ...]
    allows_private: bool
    disabled_at: int | None
    old_secret: str | None = None
    old_secret_until: int | None = None

    def secrets_at(self, now: int) -> tuple[str, ...]:
        """Return the secrets that sign what is sent at a time."""
        if self.old_secret is None or self.old_secret_until is None or now >= self.old_secret_until:
            return (self.secret,)
        return self.secret, self.old_secret


def check_webhook_name(name: str) -> None:
    """Refuse a name that is empty, too long or can't be stored.

    Raises:
        RequestError: it is.
    """
    if not name.strip() or len(name) > _LONGEST_NAME or not is_storable(name):
        raise RequestError(f"A webhook's name has 1 to {_LONGEST_NAME} characters.", code="invalid_name", param="name")


def check_name_is_free(connection: Connection, project_id: str, name: str) -> None:
    """Refuse a name that another endpoint of the project has.

    Raises:
        RequestError: one has it.
    """
    wanted = select(webhooks.c.id).where(webhooks.c.project_id == project_id, webhooks.c.name == name)
    if connection.scalar(wanted) is not None:
        raise RequestError(f"There is a webhook '{name}' already.", code="webhook_exists", param="name")


def new_secret() -> str:
    """Return a secret to sign with."""
    return _SECRET_PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def webhook_here(connection: Connection, project_id: str, webhook_id: str) -> Webhook | None:
    """Return an endpoint of a project, None where it has none of that id."""
    wanted = select(webhooks).where(webhooks.c.id == webhook_id, webhooks.c.project_id == project_id)
    row = connection.execute(wanted).first()
    return None if row is None else webhook_of(row)


def list_webhooks(connection: Connection, project_id: str, page: Page) -> Listed[Webhook]:
    """Return a page of a project's endpoints.

    Raises:
        RequestError: there is no such cursor.
    """
    found = rows_of(connection, webhooks, page, webhooks.c.project_id == project_id)
    return Listed(tuple(webhook_of(row) for row in found.items), found.has_more)


def change_webhook(connection: Connection, webhook: Webhook, **changes: Any) -> Webhook:
    """Set columns of an endpoint; one that had said that it wants nothing any more is asked again at a new URL.

    Raises:
        RequestError: another endpoint of the project has the new name.
    """
    if changes.get("name", webhook.name) != webhook.name:
        check_name_is_free(connection, webhook.project_id, changes["name"])
    if changes.get("url", webhook.url) != webhook.url:
        changes["disabled_at"] = None
    if changes:
        connection.execute(update(webhooks).where(webhooks.c.id == webhook.id).values(changes))
    return replace(webhook, **changes)


def rotate_secret(connection: Connection, webhook: Webhook, *, keeps_old: bool) -> Webhook:
    """Give an endpoint a new secret; the one before it signs as well for another day, or at once no more."""
    return change_webhook(
        connection,
        webhook,
        secret=new_secret(),
        old_secret=webhook.secret if keeps_old else None,
        old_secret_until=int(time.time()) + _OLD_SECRET_SECONDS if keeps_old else None,
    )


def webhook_of(row: Row[Any]) -> Webhook:
    """Return a row of the table as an endpoint."""
    return Webhook(
        row.id,
        row.created_at,
        row.project_id,
        row.name,
        row.url,
        row.secret,
        tuple(row.event_types),
        bool(row.allows_private),
        row.disabled_at,
        row.old_secret,
        row.old_secret_until,
    )
