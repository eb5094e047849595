"""Requests that carry an Idempotency-Key: each is carried out once, and its answer kept for a day.

A request claims its key before anything happens. Whoever claims holds it for a few seconds and renews that while it
works, so the claim of a process that died is free again soon. `Claim.id_for` gives what the request creates the same id
at each attempt: where an attempt died between creating and keeping its answer, the next one finds the object there.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, delete, select, update

from tunesmith.record.database import Database
from tunesmith.record.ids import id_from, new_id
from tunesmith.record.tables import idempotency

KEPT_SECONDS = 24 * 3600
#: A claim that isn't renewed for so long belongs to nobody any more.
CLAIM_SECONDS = 8

_STARTED, _FINISHED = "started", "finished"


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to carry a request out."""

    project_id: str
    key: str
    owner: str

    def id_for(self, prefix: str) -> str:
        """Return the id of what this request creates; the same at each attempt."""
        return id_from(prefix, f"{self.project_id}\0{self.key}")


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """The answer to a request that was carried out; `request_sha256` tells which request that was."""

    request_sha256: str
    status: int
    content_type: str
    body: str


class Idempotency:
    """Claims and kept answers in the record."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def claim(self, project_id: str, key: str) -> Claim | KeptAnswer | None:
        """Claim a key, or return the answer that is kept for it; None while another request holds it.

        Raises:
            StorageError: see `Database.write`.
        """
        return self._database.retry(lambda connection: _claim(connection, project_id, key))

    def renew(self, claim: Claim) -> None:
        """Hold a claim for some seconds more.

        Raises:
            StorageError: see `Database.write`.
        """
        until = {"expires_at": int(time.time()) + CLAIM_SECONDS}
        self._database.retry(
            lambda connection: connection.execute(update(idempotency).where(_mine(claim)).values(until))
        )

    def finish(self, claim: Claim, answer: KeptAnswer) -> None:
        """Keep the answer; nothing happens where the claim was lost meanwhile.

        Raises:
            StorageError: see `Database.write`.
        """
        values = {
            "request_sha256": answer.request_sha256, "state": _FINISHED, "status": answer.status,
            "headers": {"content-type": answer.content_type}, "body": answer.body,
            "expires_at": int(time.time()) + KEPT_SECONDS,
        }  # fmt: skip
        self._database.retry(
            lambda connection: connection.execute(update(idempotency).where(_mine(claim)).values(values))
        )

    def release(self, claim: Claim) -> None:
        """Give a claim up: its request was refused, and the key may be used again.

        Raises:
            StorageError: see `Database.write`.
        """
        self._database.retry(lambda connection: connection.execute(delete(idempotency).where(_mine(claim))))


def claim_key(*parts: str) -> str:
    """Return what a claim is kept under: whose key, which route, which Idempotency-Key, in one hash."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def _mine(claim: Claim) -> ColumnElement[bool]:
    columns = idempotency.c
    return (
        (columns.project_id == claim.project_id)
        & (columns.key == claim.key)
        & (columns.state == f"{_STARTED} {claim.owner}")
    )


def _claim(connection: Connection, project_id: str, key: str) -> Claim | KeptAnswer | None:
    now = int(time.time())
    # Writers take turns, so nobody comes between what is read here and what is written.
    over = (idempotency.c.expires_at < now) & (idempotency.c.state == _FINISHED)
    forgotten = idempotency.c.expires_at < now - KEPT_SECONDS
    connection.execute(delete(idempotency).where(over | forgotten))
    this = (idempotency.c.project_id == project_id) & (idempotency.c.key == key)
    row = connection.execute(select(idempotency).where(this)).first()
    if row is not None and row.state == _FINISHED:
        return KeptAnswer(row.request_sha256, row.status, row.headers["content-type"], row.body)
    if row is not None and row.expires_at >= now:
        return None
    claim = Claim(project_id, key, new_id(""))
    values = {"state": f"{_STARTED} {claim.owner}", "created_at": now, "expires_at": now + CLAIM_SECONDS}
    if row is None:
        new = {"project_id": project_id, "key": key, "request_sha256": "", **values}
        connection.execute(idempotency.insert().values(new))
    else:
        connection.execute(update(idempotency).where(this).values(values))
    return claim
