"""`/v1/files`: upload, list, retrieve, download, delete."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Annotated, BinaryIO, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel

from tunesmith.errors import RequestError
from tunesmith.record.files import FileRecord, NewFile
from tunesmith.rest.caller import Caller, caller_of
from tunesmith.rest.errors import WireError, WireFault
from tunesmith.rest.filenames import attachment, clean_filename
from tunesmith.rest.idempotency import id_for
from tunesmith.rest.intake import Content, in_thread, line_error, receive_form
from tunesmith.rest.paging import After, Order, WireList, WireObject, list_of, page_of
from tunesmith.rest.platform import Platform, platform_of

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
FINE_TUNE = "fine-tune"
_SHORTEST_SECONDS, _LONGEST_SECONDS = 3600, 2_592_000
#: Files for batches go by themselves unless their callers say otherwise.
_BATCH_SECONDS = _LONGEST_SECONDS
_FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")
_NUMBER = re.compile("[0-9]{1,9}")
_PIECE_BYTES = 2**18
#: Whatever is in a file, a browser saves it and runs nothing of it.
_INERT = {"x-content-type-options": "nosniff", "content-security-policy": "default-src 'none'; sandbox"}

_FORM_SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": list(PURPOSES)},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {
                            "type": "integer",
                            "minimum": _SHORTEST_SECONDS,
                            "maximum": _LONGEST_SECONDS,
                        },
                    },
                    "additionalProperties": False,
                }
            }
        },
    }
}

router = APIRouter(prefix="/v1/files")
FromPlatform = Annotated[Platform, Depends(platform_of)]
FromCaller = Annotated[Caller, Depends(caller_of)]


class WireFile(WireObject):
    """A file on the wire."""

    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: str
    status_details: str | None


class DeletedFile(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


def wire_file(record: FileRecord) -> WireFile:
    """Return a file as it goes out."""
    return WireFile(
        id=record.id,
        bytes=record.bytes,
        created_at=record.created_at,
        expires_at=record.expires_at,
        filename=record.filename,
        purpose=record.purpose,
        status=record.status,
        status_details=record.status_details,
    )


def check_purpose(purpose: str | None) -> str:
    """Return a purpose that callers may give.

    Raises:
        RequestError: it is missing or another.
    """
    if purpose is None:
        raise RequestError("Missing required parameter: 'purpose'.", code="missing_required_parameter", param="purpose")
    if purpose not in PURPOSES:
        known = ", ".join(f"'{one}'" for one in PURPOSES)
        raise RequestError(
            f"Invalid value: '{purpose[:100]}'. Supported values are: {known}.", code="invalid_value", param="purpose"
        )
    return purpose


def check_ending(filename: str) -> None:
    """Refuse a file for fine-tuning whose name says that it is no JSONL.

    Raises:
        RequestError: it does.
    """
    if not filename.lower().endswith(".jsonl"):
        raise RequestError(
            f"Invalid file format for Fine-Tuning API. Must be .jsonl: the name of this file is '{filename[:100]}'.",
            code="invalid_file_format",
            param="file",
        )


def expiry_of(purpose: str, anchor: str | None, seconds: int | None) -> int | None:
    """Return after how many seconds a file goes, None if never.

    Raises:
        RequestError: one of the two is missing or wrong.
    """
    if anchor is None and seconds is None:
        return _BATCH_SECONDS if purpose == "batch" else None
    if anchor != "created_at":
        raise RequestError(
            "Invalid 'expires_after[anchor]': expected 'created_at'.",
            code="invalid_value",
            param="expires_after[anchor]",
        )
    if seconds is None or not _SHORTEST_SECONDS <= seconds <= _LONGEST_SECONDS:
        raise RequestError(
            f"Invalid 'expires_after[seconds]': expected an integer from {_SHORTEST_SECONDS} to {_LONGEST_SECONDS}.",
            code="invalid_value",
            param="expires_after[seconds]",
        )
    return seconds


class _FileSink:
    """Takes the file of an upload: refuses early what can't become a file, checks what is meant for training."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._is_for_training = False
        self.filename = ""

    def begin(self, filename: str | None, fields: Mapping[str, str]) -> None:
        if filename is None:
            raise RequestError("'file' isn't a file: it has no file name.", code="invalid_type", param="file")
        self.filename = clean_filename(filename)
        if "purpose" in fields:
            self._is_for_training = check_purpose(fields["purpose"]) == FINE_TUNE
            if self._is_for_training:
                check_ending(self.filename)
        # While the purpose isn't known, the name decides whether checking is worth it.
        if self._is_for_training or ("purpose" not in fields and self.filename.lower().endswith(".jsonl")):
            self._content.check_lines()

    def write(self, content: memoryview) -> None:
        self._content.write(content)
        if self._is_for_training and self._content.problems:
            raise line_error(self._content.problems)


@router.post("", openapi_extra=_FORM_SCHEMA)
async def create_file(http: Request, platform: FromPlatform, caller: FromCaller) -> WireFile:
    """Upload a file."""
    threads = platform.file_threads
    limit_bytes = platform.spec.max_file_bytes
    content = await in_thread(threads, partial(Content, platform.store, limit_bytes))
    try:
        sink = _FileSink(content)
        fields = await receive_form(http, "file", sink, limit_bytes, threads)
        new = _new_file(caller.project_id, sink.filename, fields, id_for(http, "file-"))
        return wire_file(await in_thread(threads, partial(_create, platform, content, new)))
    finally:
        await in_thread(threads, content.close)


def _create(platform: Platform, content: Content, new: NewFile) -> FileRecord:
    """Make a file of content that arrived whole.

    Raises:
        RequestError: its lines aren't what training reads.
        StorageError: it can't be stored.
    """
    content.end_check()
    if new.purpose == FINE_TUNE and content.problems:
        raise line_error(content.problems)
    return platform.files.create(new, content.finish())


def _new_file(project_id: str, filename: str, fields: Mapping[str, str], file_id: str) -> NewFile:
    unknown = sorted(fields.keys() - set(_FIELDS))
    if unknown:
        raise RequestError(
            f"Unknown parameter: '{unknown[0][:100]}'.", code="unknown_parameter", param=unknown[0][:100]
        )
    purpose = check_purpose(fields.get("purpose"))
    if purpose == FINE_TUNE:
        check_ending(filename)
    seconds = fields.get("expires_after[seconds]")
    whole = None if seconds is None else int(seconds) if _NUMBER.fullmatch(seconds) else -1
    expiry = expiry_of(purpose, fields.get("expires_after[anchor]"), whole)
    return NewFile(project_id, filename, purpose, expiry, file_id)


@router.get("")
async def list_files(
    platform: FromPlatform,
    caller: FromCaller,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    after: After = None,
    order: Order = "desc",
    purpose: str | None = None,
) -> WireList[WireFile]:
    """List the files of the caller's project."""
    page = page_of(limit, after, order)
    find = partial(platform.files.list, caller.project_id, page, purpose=purpose)
    found = await in_thread(platform.file_threads, find)
    return list_of([wire_file(one) for one in found.items], has_more=found.has_more)


@router.get("/{file_id}")
async def retrieve_file(file_id: str, platform: FromPlatform, caller: FromCaller) -> WireFile:
    """Show one file."""
    return wire_file(await _find(platform, caller, file_id))


@router.delete("/{file_id}")
async def delete_file(file_id: str, platform: FromPlatform, caller: FromCaller) -> DeletedFile:
    """Delete one file. Jobs that were created with it keep their content."""
    delete = partial(platform.files.delete, caller.project_id, file_id)
    if not await in_thread(platform.file_threads, delete):
        raise WireFault(file_not_found(file_id))
    return DeletedFile(id=file_id)


@router.get(
    "/{file_id}/content",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}},
)
async def download_file(file_id: str, platform: FromPlatform, caller: FromCaller) -> Response:
    """Send a file's content, byte for byte."""
    record = await _find(platform, caller, file_id)
    file = await in_thread(platform.file_threads, partial(platform.store.open, record.sha256))
    headers = {"content-disposition": attachment(record.filename), "content-length": str(record.bytes), **_INERT}
    return StreamingResponse(_pieces(file), media_type="application/octet-stream", headers=headers)


def file_not_found(file_id: str) -> WireError:
    """Return the error for a file that the caller's project doesn't have."""
    return WireError(404, f"No such File object: {file_id[:200]}", None, "id")


async def _find(platform: Platform, caller: Caller, file_id: str) -> FileRecord:
    record = await in_thread(platform.file_threads, partial(platform.files.get, caller.project_id, file_id))
    if record is None:
        raise WireFault(file_not_found(file_id))
    return record


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while piece := file.read(_PIECE_BYTES):
            yield piece
