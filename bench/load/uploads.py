"""L03: large uploads at once. L04: a large file in parts."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from load.bars import Bar, Load, at_least, at_most, milliseconds
from load.crowd import Caller, Pulse, in_threads, percentile, pulse
from load.server import LoadServer, MemoryWatch, disk_rate, new_home, serving

_MIB = 1 << 20
_PIECE_BYTES = _MIB
_PART_BYTES = 64 * _MIB
_AT_ONCE = 4


def measure(size_bytes: int = 512 * _MIB) -> Load:
    """Upload four files at once."""
    with new_home() as home:
        raw = disk_rate(home.root)
        # A form is a little larger than its file.
        with (
            serving(home, max_file_bytes=size_bytes) as server,
            MemoryWatch(server) as memory,
            pulse(server.url) as alive,
        ):
            began = time.monotonic()
            in_threads([lambda: _upload(server, size_bytes) for _ in range(_AT_ONCE)])
            seconds = time.monotonic() - began
    work = f"{_AT_ONCE} uploads of {size_bytes // _MIB} MiB at once"
    return Load("L03", work, _bars(_AT_ONCE * size_bytes / seconds, raw, memory, alive))


def measure_parts(size_bytes: int = 1024 * _MIB) -> Load:
    """Upload one file in parts, four at once, and read it back."""
    with new_home() as home, tempfile.TemporaryDirectory(dir=home.root) as folder:
        raw = disk_rate(home.root)
        content = Path(folder) / "content"
        expected = _write_random(content, size_bytes)
        with serving(home) as server, MemoryWatch(server) as memory, pulse(server.url) as alive:
            began = time.monotonic()
            file = _upload_parts(server, content, size_bytes)
            seconds = time.monotonic() - began
            found = _download_hash(server, file)
    bars = _bars(size_bytes / seconds, raw, memory, alive)
    is_right = found == expected
    is_same = Bar("content read back", "the same" if is_right else "another", "the same", is_right)
    size = f"{size_bytes / (1 << 30):.3g} GiB"
    work = f"{size} in parts of {_PART_BYTES // _MIB} MiB, {_AT_ONCE} at once, joined to one file"
    return Load("L04", work, [*bars, is_same])


def _bars(rate: float, raw: float, memory: MemoryWatch, alive: Pulse) -> list[Bar]:
    bound = min(100.0, raw / 2e6)
    return [
        at_least("bytes that arrive", rate / 1e6, bound, "MB/s"),
        at_most("more memory", memory.grown_bytes / 1e6, 100, "MB"),
        milliseconds("p99 of `/healthz` meanwhile", percentile(alive.log, 0.99), 100),
    ]


def _upload(server: LoadServer, size_bytes: int) -> None:
    caller = Caller(server.url)
    block = os.urandom(_PIECE_BYTES)
    boundary = uuid.uuid4().hex
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="large.bin"\r\n\r\n'
    ).encode()
    tail = f"\r\n--{boundary}--\r\n".encode()

    def pieces() -> Iterator[bytes]:
        yield head
        for _ in range(size_bytes // _PIECE_BYTES):
            yield block
        yield tail

    _send(caller, "/v1/files", boundary, pieces(), len(head) + size_bytes + len(tail))
    caller.close()


def _send(caller: Caller, path: str, boundary: str, pieces: Iterator[bytes], length: int) -> dict[str, str]:
    headers = {"content-type": f"multipart/form-data; boundary={boundary}", "content-length": str(length)}
    reply = caller.ask("POST", path, pieces, headers, kind="upload")
    if reply.status != 200:
        raise SystemExit(reply.body.decode())
    answer: dict[str, str] = reply.json()
    return answer


def _upload_parts(server: LoadServer, content: Path, size_bytes: int) -> str:
    caller = Caller(server.url)
    asked = {
        "bytes": size_bytes,
        "filename": "large.bin",
        "mime_type": "application/octet-stream",
        "purpose": "user_data",
    }
    upload = caller.post("/v1/uploads", asked).json()["id"]
    count = -(-size_bytes // _PART_BYTES)
    ids: dict[int, str] = {}

    def send_some(first: int) -> None:
        one = Caller(server.url)
        for number in range(first, count, _AT_ONCE):
            ids[number] = _send_part(one, f"/v1/uploads/{upload}/parts", content, number)
        one.close()

    in_threads([lambda first=first: send_some(first) for first in range(_AT_ONCE)])  # type: ignore[misc]
    done = caller.post(f"/v1/uploads/{upload}/complete", {"part_ids": [ids[number] for number in range(count)]})
    caller.close()
    if done.status != 200:
        raise SystemExit(done.body.decode())
    return str(done.json()["file"]["id"])


def _send_part(caller: Caller, path: str, content: Path, number: int) -> str:
    boundary = uuid.uuid4().hex
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="data"; filename="part"\r\n\r\n'.encode()
    tail = f"\r\n--{boundary}--\r\n".encode()
    length = min(_PART_BYTES, content.stat().st_size - number * _PART_BYTES)

    def pieces() -> Iterator[bytes]:
        yield head
        with content.open("rb") as reading:
            reading.seek(number * _PART_BYTES)
            left = length
            while left:
                piece = reading.read(min(_PIECE_BYTES, left))
                left -= len(piece)
                yield piece
        yield tail

    return _send(caller, path, boundary, pieces(), len(head) + length + len(tail))["id"]


def _write_random(path: Path, size_bytes: int) -> str:
    found = hashlib.sha256()
    with path.open("wb") as writing:
        for _ in range(size_bytes // _PIECE_BYTES):
            block = os.urandom(_PIECE_BYTES)
            found.update(block)
            writing.write(block)
    return found.hexdigest()


def _download_hash(server: LoadServer, file: str) -> str:
    caller = Caller(server.url)
    reply = caller.get(f"/v1/files/{file}/content")
    caller.close()
    return hashlib.sha256(reply.body).hexdigest()
