"""Webhooks: who wants to hear of the end of a job, and what is still to be told.

The end of a job and the deliveries that tell of it are written in one block (`announce`), so neither is ever there
without the other. A server claims what is due, sends it, and settles it; where it dies between, another claims it
again. So an event may arrive twice, under the same id, and is never lost.
"""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from sqlalchemy import Connection, Row, delete, func, or_, select, update

from tunesmith.errors import RequestError
from tunesmith.record.database import Database
from tunesmith.record.ids import new_id
from tunesmith.record.tables import deliveries, webhooks
from tunesmith.record.webhook_endpoints import (
    Webhook,
    check_name_is_free,
    check_webhook_name,
    new_secret,
    webhook_here,
    webhook_of,
)
from tunesmith.record.webhook_urls import check_webhook_url

#: What is told of a job, by the state in which it ends.
JOB_ENDS = {
    "succeeded": "fine_tuning.job.succeeded",
    "failed": "fine_tuning.job.failed",
    "cancelled": "fine_tuning.job.cancelled",
}
EVENT_TYPES = tuple(JOB_ENDS.values())

#: How long after each failure the next attempt comes: three days in all.
WAIT_SECONDS = (5, 30, 120, 600, 1800, 7200, 6 * 3600, 12 * 3600, 24 * 3600, 24 * 3600)
MOST_ATTEMPTS = len(WAIT_SECONDS) + 1
#: Whoever claims a delivery has sent it by then, or has died.
CLAIM_SECONDS = 60
#: Many that failed together shouldn't all come back together.
_JITTER = 0.1
#: No wait is this long; one that is was written by a clock that has jumped back since.
_LONGEST_WAIT_SECONDS = 2 * 24 * 3600
_KEPT_SECONDS = 30 * 24 * 3600
#: Old rows are deleted in blocks of this many, so that others may write meanwhile.
_BATCH = 200

State = Literal["pending", "delivered", "failed"]


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event for one endpoint; `subject_id` is what it tells of, `attempts` counts the one that goes on now."""

    id: str
    created_at: int
    webhook_id: str
    event_id: str
    event_type: str
    subject_id: str
    attempts: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an attempt: the status that the endpoint answered with, or why there is none."""

    status: int | None
    error: str | None = None

    @property
    def is_good(self) -> bool:
        """Whether the endpoint has taken the event."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def is_farewell(self) -> bool:
        """Whether the endpoint says that it wants nothing any more (410 Gone)."""
        return self.status == 410


def announce(connection: Connection, project_id: str, event_type: str, subject_id: str) -> None:
    """Write down that an event is to be told to a project's endpoints, in a block of the caller's."""
    wanted = select(webhooks.c.id, webhooks.c.event_types).where(
        webhooks.c.project_id == project_id, webhooks.c.disabled_at.is_(None)
    )
    now, event_id = int(time.time()), new_id("evt_")
    for webhook_id, event_types in connection.execute(wanted).all():
        if event_type in event_types:
            connection.execute(deliveries.insert().values(_new(now, webhook_id, event_id, event_type, subject_id)))


class Webhooks:
    """The endpoints of a record and what is still to be sent to them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self,
        project_id: str,
        name: str,
        url: str,
        event_types: Sequence[str],
        *,
        allows_private: bool = False,
        id: str | None = None,
    ) -> Webhook:
        """Add an endpoint; with an id that the project has already, return that one.

        Raises:
            RequestError: the name is empty, too long or taken, the URL can't be called, or there is no such event.
            StorageError: see `Database.write`.
        """
        check_webhook_name(name)
        check_webhook_url(url, allows_private=allows_private)
        for one in event_types:
            if one not in EVENT_TYPES:
                raise RequestError(
                    f"There is no event '{one[:100]}'.",
                    fix=f"There are {', '.join(EVENT_TYPES)}.",
                    code="unknown_event",
                    param="event",
                )
        new: dict[str, Any] = {
            "id": id or new_id("we_"),
            "created_at": int(time.time()),
            "project_id": project_id,
            "name": name,
            "url": url,
            "secret": new_secret(),
            "event_types": list(dict.fromkeys(event_types)) or list(EVENT_TYPES),
            "allows_private": int(allows_private),
            "disabled_at": None,
        }

        def insert(connection: Connection) -> None:
            if webhook_here(connection, project_id, new["id"]) is not None:
                return
            check_name_is_free(connection, project_id, name)
            connection.execute(webhooks.insert().values(new))

        self._database.retry(insert)
        return self.find(new["id"])

    def all(self) -> list[Webhook]:
        """Return all endpoints, the oldest first.

        Raises:
            StorageError: see `Database.read`.
        """
        with self._database.read() as connection:
            return [webhook_of(row) for row in connection.execute(select(webhooks).order_by(webhooks.c.seq))]

    def find(self, name: str) -> Webhook:
        """Return the endpoint of an id or a name.

        Raises:
            RequestError: there is none (`no_such_webhook`), or several projects have one (`ambiguous_name`).
            StorageError: see `Database.read`.
        """
        wanted = select(webhooks).where(or_(webhooks.c.id == name, webhooks.c.name == name))
        with self._database.read() as connection:
            found = [webhook_of(row) for row in connection.execute(wanted)]
        if len(found) > 1:
            raise RequestError(
                f"Several projects have a webhook '{name[:100]}'.",
                fix=f"Give its id, one of {', '.join(one.id for one in found)}.",
                code="ambiguous_name",
                param="name",
            )
        if not found:
            raise RequestError(
                f"There is no webhook '{name[:100]}'.",
                fix="List them: tunesmith webhooks list.",
                code="no_such_webhook",
                param="name",
            )
        return found[0]

    def remove(self, name: str) -> Webhook:
        """Remove an endpoint, and what was still to be sent to it.

        Raises:
            RequestError: there is none (`no_such_webhook`).
            StorageError: see `Database.write`.
        """
        found = self.find(name)
        self._database.retry(lambda connection: connection.execute(delete(webhooks).where(webhooks.c.id == found.id)))
        return found

    def counts(self) -> dict[str, dict[State, int]]:
        """Return how many deliveries of each endpoint are in each state.

        Raises:
            StorageError: see `Database.read`.
        """
        query = select(deliveries.c.webhook_id, deliveries.c.state, func.count()).group_by(
            deliveries.c.webhook_id, deliveries.c.state
        )
        found: dict[str, dict[State, int]] = {}
        with self._database.read() as connection:
            for webhook_id, state, count in connection.execute(query):
                found.setdefault(webhook_id, {})[cast(State, state)] = count
        return found

    def last_failures(self) -> dict[str, str]:
        """Return why the newest attempt failed, by endpoint, where it did.

        Raises:
            StorageError: see `Database.read`.
        """
        newest = select(func.max(deliveries.c.seq)).where(deliveries.c.attempts > 0).group_by(deliveries.c.webhook_id)
        query = select(deliveries.c.webhook_id, deliveries.c.last_error).where(deliveries.c.seq.in_(newest))
        with self._database.read() as connection:
            return {webhook_id: error for webhook_id, error in connection.execute(query) if error}

    def claim(self, now: int, most: int, except_for: Collection[str] = ()) -> list[tuple[Delivery, Webhook]]:
        """Claim deliveries that are due, at most one for each endpoint; `settle` each of them.

        Args:
            now: Unix seconds.
            most: how many.
            except_for: endpoints that are being sent something already.

        Raises:
            StorageError: see `Database.write`.
        """
        due = (
            select(func.min(deliveries.c.seq))
            .join(webhooks, webhooks.c.id == deliveries.c.webhook_id)
            .where(
                deliveries.c.state == "pending",
                or_(deliveries.c.next_attempt_at <= now, deliveries.c.next_attempt_at > now + _LONGEST_WAIT_SECONDS),
                deliveries.c.webhook_id.not_in(except_for),
            )
            .group_by(deliveries.c.webhook_id)
            .limit(most)
        )
        with self._database.read() as connection:
            if not connection.execute(due).first():
                return []

        def take(connection: Connection) -> list[tuple[Delivery, Webhook]]:
            taken = (
                update(deliveries)
                .where(deliveries.c.seq.in_(list(connection.scalars(due))))
                .values(attempts=deliveries.c.attempts + 1, next_attempt_at=now + CLAIM_SECONDS)
                .returning(deliveries)
            )
            found = [_delivery(row) for row in connection.execute(taken)]
            owners = {one.webhook_id for one in found}
            rows = connection.execute(select(webhooks).where(webhooks.c.id.in_(owners)))
            by_id = {row.id: webhook_of(row) for row in rows}
            return [(one, by_id[one.webhook_id]) for one in found]

        return self._database.retry(take)

    def settle(self, delivery: Delivery, outcome: Outcome) -> None:
        """Note what came of an attempt.

        Raises:
            StorageError: see `Database.write`.
        """
        now = int(time.time())
        values: dict[str, Any] = {"last_status": outcome.status, "last_error": outcome.error}
        if outcome.is_good:
            values |= {"state": "delivered", "delivered_at": now}
        elif outcome.is_farewell or delivery.attempts >= MOST_ATTEMPTS:
            values |= {"state": "failed"}
        else:
            wait_seconds = WAIT_SECONDS[delivery.attempts - 1]
            values |= {"next_attempt_at": now + round(wait_seconds * random.uniform(1, 1 + _JITTER))}  # noqa: S311
        # What a later attempt has settled stays, unless this one arrived.
        mine = deliveries.c.id == delivery.id
        if not outcome.is_good:
            mine &= deliveries.c.attempts == delivery.attempts

        def write(connection: Connection) -> None:
            connection.execute(update(deliveries).where(mine).values(values))
            if outcome.is_farewell:
                this = webhooks.c.id == delivery.webhook_id
                connection.execute(update(webhooks).where(this).values(disabled_at=now))
                waiting = (deliveries.c.webhook_id == delivery.webhook_id) & (deliveries.c.state == "pending")
                connection.execute(update(deliveries).where(waiting).values(state="failed"))

        self._database.retry(write)

    def delete_old(self) -> int:
        """Delete what was settled long ago; return how many there were.

        Raises:
            StorageError: see `Database.write`.
        """
        old = (deliveries.c.state != "pending") & (deliveries.c.created_at < int(time.time()) - _KEPT_SECONDS)
        some = select(deliveries.c.seq).where(old).limit(_BATCH)
        gone = delete(deliveries).where(deliveries.c.seq.in_(some))
        count = 0
        while True:
            with self._database.read() as connection:
                if connection.scalar(some) is None:
                    return count
            count += self._database.retry(lambda connection: connection.execute(gone).rowcount)


def _new(now: int, webhook_id: str, event_id: str, event_type: str, subject_id: str) -> dict[str, Any]:
    return {
        "id": new_id("whd_"),
        "created_at": now,
        "webhook_id": webhook_id,
        "event_id": event_id,
        "event_type": event_type,
        "subject_id": subject_id,
        "state": "pending",
        "attempts": 0,
        "next_attempt_at": now,
    }


def _delivery(row: Row[Any]) -> Delivery:
    return Delivery(row.id, row.created_at, row.webhook_id, row.event_id, row.event_type, row.subject_id, row.attempts)
