"""`/v1/uploads`: files that arrive in parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from tunesmith.errors import RequestError, StorageError
from tunesmith.record.files import FileRecord, NewFile
from tunesmith.record.store import Blob
from tunesmith.record.uploads import PartRecord, UploadRecord
from tunesmith.rest.bodies import read_body
from tunesmith.rest.errors import WireError, WireFault
from tunesmith.rest.filenames import clean_filename
from tunesmith.rest.files import (
    FINE_TUNE,
    FromCaller,
    FromPlatform,
    WireFile,
    check_ending,
    check_purpose,
    expiry_of,
    wire_file,
)
from tunesmith.rest.idempotency import id_for
from tunesmith.rest.intake import Content, PartSink, in_thread, line_error, receive_form
from tunesmith.rest.platform import Platform
from tunesmith.rest.schema import json_body

MAX_PART_BYTES = 64 * 2**20
MAX_UPLOAD_BYTES = 8 * 2**30
_MOST_PARTS = 10_000

router = APIRouter(prefix="/v1/uploads")


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ExpiresAfter(_Body):
    """When the file goes by itself."""

    anchor: str
    seconds: int


class CreateUpload(_Body):
    """What an upload is created with."""

    bytes: int = Field(ge=1, le=MAX_UPLOAD_BYTES)
    filename: str
    mime_type: Annotated[str, StringConstraints(max_length=255)]
    purpose: str
    expires_after: ExpiresAfter | None = None


class CompleteUpload(_Body):
    """Which parts make the file, in order."""

    part_ids: list[str] = Field(min_length=1, max_length=_MOST_PARTS)
    md5: str | None = None


class WireUpload(BaseModel):
    """An upload on the wire."""

    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: WireFile | None = None


class WirePart(BaseModel):
    """A part on the wire."""

    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str


_PART_SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["data"],
                    "properties": {"data": {"type": "string", "format": "binary"}},
                    "additionalProperties": False,
                }
            }
        },
    }
}


@router.post("", openapi_extra=json_body(CreateUpload))
async def create_upload(http: Request, platform: FromPlatform, caller: FromCaller) -> WireUpload:
    """Begin an upload."""
    body = await read_body(http, CreateUpload)
    filename = clean_filename(body.filename)
    purpose = check_purpose(body.purpose)
    if purpose == FINE_TUNE:
        check_ending(filename)
    after = body.expires_after
    seconds = expiry_of(purpose, after.anchor, after.seconds) if after else expiry_of(purpose, None, None)
    new = NewFile(caller.project_id, filename, purpose, seconds, id_for(http, "upload_"))
    create = partial(platform.uploads.create, new, body.mime_type, body.bytes)
    return _wire_upload(await in_thread(platform.file_threads, create))


@router.get("/{upload_id}")
async def retrieve_upload(upload_id: str, platform: FromPlatform, caller: FromCaller) -> WireUpload:
    """Show an upload. OpenAI's service has no such call; it tells how far one is."""
    record = await in_thread(platform.file_threads, partial(platform.uploads.get, caller.project_id, upload_id))
    if record is None:
        raise WireFault(_upload_not_found(upload_id))
    file = None
    if record.file_id is not None:
        find = partial(platform.files.get, caller.project_id, record.file_id)
        file = await in_thread(platform.file_threads, find)
    return _wire_upload(record, file)


@router.post("/{upload_id}/parts", openapi_extra=_PART_SCHEMA)
async def add_part(upload_id: str, http: Request, platform: FromPlatform, caller: FromCaller) -> WirePart:
    """Add a part; several may arrive at the same time."""
    upload = await _pending(platform, caller.project_id, upload_id)
    threads = platform.file_threads
    content = await in_thread(threads, partial(Content, platform.store, MAX_PART_BYTES))
    try:
        fields = await receive_form(http, "data", PartSink(content), MAX_PART_BYTES, threads)
        if fields:
            name = min(fields)[:100]
            raise RequestError(f"Unknown parameter: '{name}'.", code="unknown_parameter", param=name)
        add = partial(_add_part, platform, upload, content, id_for(http, "part_"))
        part = await in_thread(threads, add)
    finally:
        await in_thread(threads, content.close)
    return WirePart(id=part.id, created_at=part.created_at, upload_id=part.upload_id)


@router.post("/{upload_id}/complete", openapi_extra=json_body(CompleteUpload))
async def complete_upload(upload_id: str, http: Request, platform: FromPlatform, caller: FromCaller) -> WireUpload:
    """Join the parts into a file."""
    body = await read_body(http, CompleteUpload)
    threads = platform.file_threads
    file_id = id_for(http, "file-")
    before = await in_thread(threads, partial(_completed_as, platform, caller.project_id, upload_id, file_id))
    if before is not None:
        return before
    upload = await _pending(platform, caller.project_id, upload_id)
    parts = await in_thread(threads, partial(platform.uploads.parts_of, upload, body.part_ids))
    content = await in_thread(threads, partial(Content, platform.store, MAX_UPLOAD_BYTES, md5=body.md5 is not None))
    try:
        join = partial(_join, platform, upload, parts, content, body.md5)
        blob = await in_thread(threads, join)
        done, file = await in_thread(threads, partial(platform.uploads.complete, upload, blob, file_id))
    finally:
        await in_thread(threads, content.close)
    return _wire_upload(done, file)


@router.post("/{upload_id}/cancel")
async def cancel_upload(upload_id: str, platform: FromPlatform, caller: FromCaller) -> WireUpload:
    """End an upload; its parts are deleted."""
    upload = await _pending(platform, caller.project_id, upload_id)
    return _wire_upload(await in_thread(platform.file_threads, partial(platform.uploads.cancel, upload)))


def _add_part(platform: Platform, upload: UploadRecord, content: Content, part_id: str) -> PartRecord:
    return platform.uploads.add_part(upload, content.finish(), part_id)


def _completed_as(platform: Platform, project_id: str, upload_id: str, file_id: str) -> WireUpload | None:
    """Return an upload that an earlier attempt at the same request completed: its parts are gone, its file is there."""
    record = platform.uploads.get(project_id, upload_id)
    if record is None or record.file_id != file_id:
        return None
    return _wire_upload(record, platform.files.get(project_id, file_id))


def _join(
    platform: Platform, upload: UploadRecord, parts: Sequence[PartRecord], content: Content, md5: str | None
) -> Blob:
    """Make one content of the parts and check it.

    Raises:
        RequestError: the content isn't what it should be.
        StorageError: it can't be stored.
    """
    is_for_training = upload.purpose == FINE_TUNE
    if is_for_training:
        content.check_lines()
    try:
        for piece in _pieces(platform, parts):
            content.write(piece)
            if content.problems:
                break
    except StorageError:
        # Perhaps it was cancelled meanwhile, which deletes its parts; that is no fault of the disk's.
        platform.uploads.pending(upload.project_id, upload.id)
        raise
    content.end_check()
    if content.problems:
        raise line_error(content.problems)
    if md5 is not None and md5.lower() != content.md5:
        raise RequestError(f"The MD5 of the parts is {content.md5}, not what was given.", code="wrong_md5", param="md5")
    return content.finish()


def _pieces(platform: Platform, parts: Sequence[PartRecord]) -> Iterator[bytes]:
    for part in parts:
        yield from platform.store.read(part.sha256)


async def _pending(platform: Platform, project_id: str, upload_id: str) -> UploadRecord:
    upload = await in_thread(platform.file_threads, partial(platform.uploads.pending, project_id, upload_id))
    if upload is None:
        raise WireFault(_upload_not_found(upload_id))
    return upload


def _upload_not_found(upload_id: str) -> WireError:
    return WireError(404, f"No such Upload object: {upload_id[:200]}", None, "id")


def _wire_upload(record: UploadRecord, file: FileRecord | None = None) -> WireUpload:
    return WireUpload(
        id=record.id,
        bytes=record.bytes,
        created_at=record.created_at,
        expires_at=record.expires_at,
        filename=record.filename,
        purpose=record.purpose,
        status=record.status,
        file=None if file is None else wire_file(file),
    )
