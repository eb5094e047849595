"""Uploads: files that arrive in parts, in any order, within an hour. Each part is content of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from tunesmith.errors import RequestError
from tunesmith.record.blobs import free_blobs, name_blob
from tunesmith.record.database import Database
from tunesmith.record.files import FileRecord, Files, NewFile
from tunesmith.record.ids import new_id
from tunesmith.record.store import Blob, Store
from tunesmith.record.tables import parts, uploads

UploadStatus = Literal["pending", "completed", "cancelled", "expired"]

#: How long parts are waited for.
LIFETIME_SECONDS = 3600
#: Parts that were sent twice after a lost connection may take up room, but not without bound.
_MOST_PARTS = 10_000
_SPARE_BYTES = 64 * 2**20
_BATCH = 100


@dataclass(frozen=True, slots=True)
class UploadRecord:
    """An upload as the record knows it. `bytes` is what was announced; times are whole Unix seconds."""

    id: str
    created_at: int
    project_id: str
    filename: str
    purpose: str
    mime_type: str
    bytes: int
    status: UploadStatus
    expires_at: int
    expires_after: int | None
    file_id: str | None


@dataclass(frozen=True, slots=True)
class PartRecord:
    """One part of an upload."""

    id: str
    created_at: int
    project_id: str
    upload_id: str
    bytes: int
    sha256: str


class Uploads:
    """The uploads of all projects.

    Args:
        database: holds the rows.
        store: holds the content.
        clock: says the time in Unix seconds.
    """

    def __init__(self, database: Database, store: Store, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._store = store
        self._clock = clock
        self._files = Files(database, store, clock=clock)

    def create(self, new: NewFile, mime_type: str, size_bytes: int) -> UploadRecord:
        """Begin an upload of so many bytes. One that has the new one's id already is returned as it is.

        Raises:
            StorageError: see `Database.write`.
        """
        now = int(self._clock())
        record = UploadRecord(
            id=new.id or new_id("upload_"),
            created_at=now,
            project_id=new.project_id,
            filename=new.filename,
            purpose=new.purpose,
            mime_type=mime_type,
            bytes=size_bytes,
            status="pending",
            expires_at=now + LIFETIME_SECONDS,
            expires_after=new.expires_after_seconds,
            file_id=None,
        )
        with self._database.write() as connection:
            known = self._find(connection, new.project_id, record.id)
            if known is None:
                connection.execute(insert(uploads).values(asdict(record)))
        return known or record

    def get(self, project_id: str, upload_id: str) -> UploadRecord | None:
        """Return an upload of a project, None where it has none of that id."""
        with self._database.read() as connection:
            return self._find(connection, project_id, upload_id)

    def pending(self, project_id: str, upload_id: str) -> UploadRecord | None:
        """Return an upload that still takes parts, None where there is none of that id.

        Raises:
            RequestError: it takes none any more (`upload_completed`, `upload_cancelled`, `upload_expired`).
        """
        record = self.get(project_id, upload_id)
        if record is not None:
            _check_pending(record)
        return record

    def add_part(self, upload: UploadRecord, blob: Blob, part_id: str | None = None) -> PartRecord:
        """Add a part whose content is stored already. One that has the new one's id already is returned as it is.

        Args:
            upload: what the part belongs to.
            blob: the content.
            part_id: what the part is called; None: a new id.

        Raises:
            RequestError: the upload takes no parts any more, or they are far more than it announced.
            StorageError: see `name_blob` and `Database.write`.
        """
        record = PartRecord(
            id=part_id or new_id("part_"),
            created_at=int(self._clock()),
            project_id=upload.project_id,
            upload_id=upload.id,
            bytes=blob.bytes,
            sha256=blob.sha256,
        )
        with self._database.write() as connection:
            _check_pending(self._again(connection, upload))
            known = connection.execute(
                select(parts).where(parts.c.id == record.id, parts.c.upload_id == upload.id)
            ).one_or_none()
            if known is not None:
                return _part(known)
            count, total_bytes = connection.execute(
                select(func.count(), func.coalesce(func.sum(parts.c.bytes), 0)).where(parts.c.upload_id == upload.id)
            ).one()
            if count >= _MOST_PARTS or total_bytes + blob.bytes > 2 * upload.bytes + _SPARE_BYTES:
                raise RequestError(
                    "The parts of this upload are far larger than the size that it was created with.",
                    fix="Create an upload with the right number of bytes.",
                    code="too_many_parts",
                )
            name_blob(connection, self._store, blob)
            connection.execute(insert(parts).values(asdict(record)))
        return record

    def parts_of(self, upload: UploadRecord, part_ids: Sequence[str]) -> list[PartRecord]:
        """Return parts of an upload in the order in which they are named.

        Raises:
            RequestError: one isn't there or is named twice, or together they aren't as large as was announced.
        """
        with self._database.read() as connection:
            rows = connection.execute(select(parts).where(parts.c.upload_id == upload.id)).all()
        known = {row.id: _part(row) for row in rows}
        for index, part_id in enumerate(part_ids):
            if part_id not in known:
                raise RequestError(
                    f"This upload has no part '{part_id[:100]}'.", code="part_not_found", param=f"part_ids[{index}]"
                )
        if len(set(part_ids)) != len(part_ids):
            raise RequestError("A part is named twice.", code="duplicate_part", param="part_ids")
        found = [known[part_id] for part_id in part_ids]
        total_bytes = sum(part.bytes for part in found)
        if total_bytes != upload.bytes:
            raise RequestError(
                f"The parts hold {total_bytes:,} bytes, but the upload was created with {upload.bytes:,}.",
                code="wrong_number_of_bytes",
                param="part_ids",
            )
        return found

    def complete(self, upload: UploadRecord, blob: Blob, file_id: str | None = None) -> tuple[UploadRecord, FileRecord]:
        """Turn an upload into a file whose content, all parts joined, is stored already.

        Args:
            upload: what is completed.
            blob: the content.
            file_id: what the file is called; None: a new id.

        Raises:
            RequestError: somebody completed or cancelled it meanwhile, or it expired.
            StorageError: see `name_blob` and `Database.write`.
        """
        with self._database.write() as connection:
            _check_pending(self._again(connection, upload))
            new = NewFile(upload.project_id, upload.filename, upload.purpose, upload.expires_after, file_id)
            file = self._files.add(connection, new, blob)
            digests = self._close(connection, [upload.id], "completed", file.id)
            done = self._again(connection, upload)
        free_blobs(self._database, self._store, digests)
        return done, file

    def cancel(self, upload: UploadRecord) -> UploadRecord:
        """End an upload and delete its parts.

        Raises:
            RequestError: it was completed or cancelled already, or it expired.
            StorageError: see `Database.write`.
        """
        with self._database.write() as connection:
            _check_pending(self._again(connection, upload))
            digests = self._close(connection, [upload.id], "cancelled")
            done = self._again(connection, upload)
        free_blobs(self._database, self._store, digests)
        return done

    def expire(self) -> int:
        """End uploads whose time is over and delete their parts; return how many.

        Raises:
            StorageError: see `Database.write`.
        """
        count = 0
        while True:
            with self._database.write() as connection:
                due = uploads.c.expires_at <= int(self._clock())
                ids = connection.scalars(
                    select(uploads.c.id).where(uploads.c.status == "pending", due).limit(_BATCH)
                ).all()
                digests = self._close(connection, ids, "expired")
            if not ids:
                return count
            free_blobs(self._database, self._store, digests)
            count += len(ids)

    def _close(
        self, connection: Connection, ids: Sequence[str], status: UploadStatus, file_id: str | None = None
    ) -> Collection[str]:
        """Give uploads their last state and delete their parts; return what these named."""
        connection.execute(update(uploads).where(uploads.c.id.in_(ids)).values(status=status, file_id=file_id))
        gone = delete(parts).where(parts.c.upload_id.in_(ids)).returning(parts.c.sha256)
        return set(connection.scalars(gone))

    def _again(self, connection: Connection, upload: UploadRecord) -> UploadRecord:
        """Read an upload once more: nobody else writes now."""
        found = self._find(connection, upload.project_id, upload.id)
        assert found is not None, "uploads are never deleted"
        return found

    def _find(self, connection: Connection, project_id: str, upload_id: str) -> UploadRecord | None:
        where = (uploads.c.id == upload_id, uploads.c.project_id == project_id)
        row = connection.execute(select(uploads).where(*where)).one_or_none()
        return None if row is None else self._record(row)

    def _record(self, row: Row[Any]) -> UploadRecord:
        values = {name: row._mapping[name] for name in UploadRecord.__slots__}
        if values["status"] == "pending" and values["expires_at"] <= self._clock():
            values["status"] = "expired"
        return UploadRecord(**values)


def _check_pending(upload: UploadRecord) -> None:
    if upload.status != "pending":
        raise RequestError(
            f"This upload is {upload.status} and can't be changed any more.",
            fix="Create a new one.",
            code=f"upload_{upload.status}",
        )


def _part(row: Row[Any]) -> PartRecord:
    return PartRecord(**{name: row._mapping[name] for name in PartRecord.__slots__})
