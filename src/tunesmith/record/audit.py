"""The audit log: who changed what and who was refused, in the order in which it happened. Nothing is ever removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, select

from tunesmith.record.database import Database
from tunesmith.record.ids import new_id
from tunesmith.record.tables import audit


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One request that changed something or was refused. It holds no body, no query, no key.

    Attributes:
        at: when, in whole Unix seconds.
        key_id: whose key; None for callers without a known one.
        project_id: that key's project.
        method: `POST`, `DELETE`...
        route: the route's pattern (`/v1/files/{file_id}`), None where no route was reached.
        target: what stood in the pattern's place (`file-...`).
        status: the answer's status.
        request_id: the answer's `x-request-id`.
        seq: the place in the log; the log gives it.
    """

    at: int
    key_id: str | None
    project_id: str | None
    method: str
    route: str | None
    target: str | None
    status: int
    request_id: str
    seq: int | None = None


class AuditLog:
    """The audit log in the record; entries can be added and read."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, entries: Sequence[AuditEntry]) -> None:
        """Add entries, all or none.

        Raises:
            StorageError: see `Database.write`.
        """
        rows = [
            {
                "id": new_id("audit_"), "created_at": entry.at, "project_id": entry.project_id, "key_id": entry.key_id,
                "action": entry.method, "target": entry.target, "outcome": str(entry.status),
                "request_id": entry.request_id, "detail": {"route": entry.route},
            }
            for entry in entries
        ]  # fmt: skip
        if rows:
            self._database.retry(lambda connection: connection.execute(audit.insert(), rows))

    def read(self, *, after: int = 0, limit: int = 100) -> list[AuditEntry]:
        """Return up to `limit` entries behind the place `after`, the oldest first.

        Raises:
            StorageError: see `Database.read`.
        """
        return self._entries(select(audit).where(audit.c.seq > after).order_by(audit.c.seq).limit(limit))

    def newest(self, limit: int) -> list[AuditEntry]:
        """Return up to `limit` entries from the end of the log, the oldest of them first.

        Raises:
            StorageError: see `Database.read`.
        """
        return self._entries(select(audit).order_by(audit.c.seq.desc()).limit(limit))[::-1]

    def _entries(self, query: Select[Any]) -> list[AuditEntry]:
        with self._database.read() as connection:
            return [
                AuditEntry(
                    at=row.created_at,
                    key_id=row.key_id,
                    project_id=row.project_id,
                    method=row.action,
                    route=row.detail["route"],
                    target=row.target,
                    status=int(row.outcome),
                    request_id=row.request_id,
                    seq=row.seq,
                )
                for row in connection.execute(query)
            ]
