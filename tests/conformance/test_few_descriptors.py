"""F32 of the reliability catalogue: a server that may have few files open refuses what is too much, and recovers."""

from __future__ import annotations

import errno
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from server_process import running_server
from tunesmith.errors import StorageError, storage_errors

FEW = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
PATIENCE_SECONDS = 60


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.delenv("TUNESMITH_DATABASE_URL", raising=False)
    with running_server(tmp_path / "log", tmp_path / "home", prelude=FEW) as running:
        yield running
        told = running.errors.read_text()
        # Nobody was told of a fault. Of many who come at the same moment, asyncio itself may have too many.
        assert running.process.poll() is None
        assert "unexpected fault" not in told and "failed" not in told


def answered(server, status):
    """The first answer of a status; connections beyond those that are heard may be cut."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            reply = httpx.get(f"{server.url}/v1/files", timeout=10)
            if reply.status_code == status:
                return reply
        except httpx.TransportError:
            pass
        assert time.monotonic() < give_up
        time.sleep(0.05)


def test_f32_connections_beyond_the_limit_are_refused_and_there_is_room_again(server):
    address = urlsplit(server.url)
    idle = [socket.create_connection((address.hostname, address.port), timeout=10) for _ in range(100)]
    refusal = answered(server, 503)
    assert refusal.headers["retry-after"] == "2" and "x-should-retry" not in refusal.headers
    error = refusal.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("server_error", "busy")
    # A body that is still on its way doesn't cost its sender the answer.
    large = httpx.post(f"{server.url}/v1/files", files={"file": ("x", b"x" * 2_000_000)}, timeout=60)
    assert large.status_code == 503
    # Nor does it break on who goes on speaking before they listen.
    with socket.create_connection((address.hostname, address.port), timeout=60) as slow:
        slow.sendall(b"POST /v1/files HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 100000\r\n\r\n")
        for _ in range(5):
            time.sleep(0.02)
            slow.sendall(b"x" * 1000)
        assert slow.recv(65_536).startswith(b"HTTP/1.1 503 ")
    for one in idle:
        one.close()
    assert answered(server, 200)


def test_f32_many_uploads_at_once_all_arrive(server):
    contents = [str(number).encode() * 50_000 for number in range(60)]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=20) as client:

        def upload(content):
            return client.files.create(file=("x.txt", content), purpose="user_data").id

        with ThreadPoolExecutor(20) as threads:
            made = list(threads.map(upload, contents))
        assert [client.files.content(name).read() for name in made] == contents


#: Whoever looks for a certain model finds that the system has no descriptor left.
WITHOUT_DESCRIPTORS = """
import errno
from tunesmith.serve.catalogue import Catalogue
find = Catalogue.find
def find_or_fail(self, name):
    if name == "no-descriptors":
        raise OSError(errno.EMFILE, "Too many open files")
    return find(self, name)
Catalogue.find = find_or_fail
"""


def test_f32_a_request_that_finds_no_descriptor_is_told_as_a_busy_server(tmp_path, monkeypatch):
    monkeypatch.delenv("TUNESMITH_DATABASE_URL", raising=False)
    with running_server(tmp_path / "log", tmp_path / "home", prelude=WITHOUT_DESCRIPTORS) as running:
        reply = httpx.get(f"{running.url}/v1/models/no-descriptors")
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "busy")
        assert reply.headers["retry-after"] and "x-should-retry" not in reply.headers
        assert httpx.get(f"{running.url}/v1/models").status_code == 200


def test_f32_files_that_cannot_be_opened_are_told_as_a_busy_server(tmp_path):
    with pytest.raises(StorageError) as refused, storage_errors(tmp_path):
        raise OSError(errno.EMFILE, "Too many open files")
    assert refused.value.code == "busy"
