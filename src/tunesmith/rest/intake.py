"""From a request's body to content in the store, with a constant amount of memory.

What takes time or blocks (parsing, hashing, writing, checking) happens in the platform's file threads, a megabyte at a
time; meanwhile nothing more is read from the caller.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import TypeVar

from fastapi import Request

from tunesmith.data.jsonl_check import JsonlCheck, LineProblem
from tunesmith.errors import RequestError, UserError
from tunesmith.record.store import Blob, Store
from tunesmith.rest.errors import WireError, WireFault
from tunesmith.rest.multipart import FileSink, FormReader

#: What a form may hold beside its file.
FORM_BYTES = 2**20
_PIECE_BYTES = 2**20
#: A caller who says nothing for so long in the middle of a body is given up.
SILENCE_SECONDS = 120.0
#: A refused body is read on for so long, since many clients hear nothing while they speak.
_READ_ON_BYTES = 16 * 2**20
_READ_ON_SECONDS = 2.0

_T = TypeVar("_T")


class Content:
    """Content on its way into the store, checked while it arrives. `close` it in any case.

    Threads may use it one after the other; `close` may come from another thread at any time.

    Args:
        store: where it goes.
        limit_bytes: how much it may be.
        md5: whether to compute its MD5.
    """

    def __init__(self, store: Store, limit_bytes: int, *, md5: bool = False) -> None:
        self._writer = store.writer()
        self._limit_bytes = limit_bytes
        self._md5 = hashlib.md5(usedforsecurity=False) if md5 else None
        self._check: JsonlCheck | None = None
        self._lock = threading.Lock()

    def check_lines(self) -> None:
        """Check from now on whether it is JSONL."""
        self._check = JsonlCheck()

    @property
    def problems(self) -> tuple[LineProblem, ...]:
        """What is known to be wrong with its lines, where these are checked."""
        return self._check.problems if self._check is not None else ()

    @property
    def md5(self) -> str | None:
        """The MD5 of what came so far, where it was asked for."""
        return None if self._md5 is None else self._md5.hexdigest()

    def write(self, piece: bytes | memoryview) -> None:
        """Take the next piece.

        Raises:
            WireFault: it is too much.
            StorageError: the disk is full or failed.
        """
        with self._lock:
            if self._writer.bytes_written + len(piece) > self._limit_bytes:
                raise WireFault(too_large(self._limit_bytes))
            content = bytes(piece)
            self._writer.write(content)
            if self._md5 is not None:
                self._md5.update(content)
            if self._check is not None:
                self._check.feed(content)

    def end_check(self) -> None:
        """Say that it is whole and wait for what is wrong with its lines."""
        with self._lock:
            if self._check is not None:
                self._check.finish()

    def finish(self) -> Blob:
        """Give it its name in the store; it is on the disk when this returns.

        Raises:
            StorageError: the disk is full or failed.
        """
        with self._lock:
            return self._writer.finish()

    def close(self) -> None:
        """Remove what wasn't finished."""
        with self._lock:
            self._writer.abort()
            if self._check is not None:
                self._check.close()


class PartSink:
    """Takes a form's file as it is, whatever its name."""

    def __init__(self, content: Content) -> None:
        self._content = content

    def begin(self, filename: str | None, fields: Mapping[str, str]) -> None:
        """Nothing depends on the name."""

    def write(self, content: memoryview) -> None:
        """Store it."""
        self._content.write(content)


async def receive_form(
    http: Request, file_field: str, sink: FileSink, limit_bytes: int, threads: ThreadPoolExecutor
) -> Mapping[str, str]:
    """Read a request's body as a form with one file; return its other fields once it is whole.

    Args:
        http: the request.
        file_field: what the file's field is called.
        sink: takes the file.
        limit_bytes: how large the file may be.
        threads: where the work is done.

    Raises:
        WireFault: the body is too large, encoded, or stopped arriving.
        RequestError: it isn't the form that it should be.
        ClientDisconnect: the caller left.
    """
    stream = http.stream()
    try:
        if http.headers.get("content-encoding", "identity") != "identity":
            message = "Bodies are read as they are. Send this one without Content-Encoding."
            raise WireFault(WireError(415, message, "unsupported_encoding"))
        form = FormReader(http.headers.get("content-type", ""), file_field, sink)
        if int(http.headers.get("content-length", "0")) > limit_bytes + FORM_BYTES:
            raise WireFault(too_large(limit_bytes))
        await _feed(stream, form, limit_bytes + FORM_BYTES, threads)
        form.finish()
        return form.fields
    except (WireFault, UserError):
        if "expect" not in http.headers:
            await _read_on(stream)
        raise


def line_error(problems: tuple[LineProblem, ...]) -> RequestError:
    """Return the refusal of a file whose lines aren't what training reads: the first problem in full, then the rest."""
    first = problems[0]
    if first.line is None:
        return RequestError(f"{first.message} {first.fix}", code=first.code, param="file")
    what = "is not a dictionary. " if first.code == "not_an_object" else "can't be read. "
    message = (
        "Expected file to have JSONL format, where every line is a JSON dictionary. "
        f"Line {first.line} {what}{first.message} {first.fix}"
    )
    for other in problems[1:]:
        message += f"\nLine {other.line}: {other.message}"
    return RequestError(message, code=first.code, param="file")


def too_large(limit_bytes: int) -> WireError:
    """Return the error for content over a limit."""
    return WireError(413, f"The file is larger than {limit_bytes:,} bytes.", "file_too_large", "file")


async def in_thread(threads: ThreadPoolExecutor | None, function: Callable[[], _T]) -> _T:
    """Call a function in one of some threads, or of the event loop's own; what it logs bears the request's id."""
    return await asyncio.get_running_loop().run_in_executor(threads, partial(copy_context().run, function))


async def _feed(stream: AsyncIterator[bytes], form: FormReader, limit_bytes: int, threads: ThreadPoolExecutor) -> None:
    received_bytes = 0
    waiting = bytearray()
    while True:
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                piece = await anext(stream, None)
        except TimeoutError:
            raise WireFault(WireError(408, "The request stopped arriving.", "request_timeout")) from None
        if piece is None:
            break
        received_bytes += len(piece)
        if received_bytes > limit_bytes:
            raise WireFault(too_large(limit_bytes - FORM_BYTES))
        waiting += piece
        if len(waiting) >= _PIECE_BYTES:
            full, waiting = bytes(waiting), bytearray()
            await in_thread(threads, lambda full=full: form.feed(full))  # type: ignore[misc]
    if waiting:
        await in_thread(threads, lambda: form.feed(bytes(waiting)))


async def _read_on(stream: AsyncIterator[bytes]) -> None:
    """Read a refused body a little further and throw it away."""
    read_bytes = 0
    try:
        async with asyncio.timeout(_READ_ON_SECONDS):
            async for piece in stream:
                read_bytes += len(piece)
                if read_bytes > _READ_ON_BYTES:
                    return
    except TimeoutError:
        return
