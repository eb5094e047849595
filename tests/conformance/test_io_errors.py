"""F14 of the reliability catalogue: the disk fails at any call while a file is uploaded."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest

from conformance.test_files import TEN_LINES, upload
from server_process import running_server

#: Calls that write; `when` counts each kind in each thread.
CALLS = ("fsync", "fdatasync", "write", "pwrite64", "rename")


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.delenv("TUNESMITH_DATABASE_URL", raising=False)
    with running_server(tmp_path / "log", tmp_path / "home") as server:
        yield server


@contextmanager
def failing(process, call, error, when, folder):
    """Make a process's `when`th call of a kind fail, in each thread."""
    inject = f"inject={call}:error={error}:when={when}"
    command = ["strace", "-f", "-qq", "-o", str(folder / "trace"), "-e", f"trace={call}", "-e", inject]
    tracer = subprocess.Popen([*command, "-p", str(process.pid)], stderr=subprocess.PIPE, text=True)
    give_up = time.monotonic() + 120
    status = Path(f"/proc/{process.pid}/status")
    while "TracerPid:\t0" in status.read_text():
        if tracer.poll() is not None:
            pytest.skip("strace can't attach here")
        assert time.monotonic() < give_up
        time.sleep(0.02)
    try:
        yield
    finally:
        tracer.terminate()
        tracer.communicate(timeout=120)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_F14_what_fails_is_not_acknowledged(server, error, tmp_path):
    kept, refused = {}, []
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        for call in CALLS:
            for when in (1, 2, 3):
                content = TEN_LINES + b'{"call": "%s %d"}\n' % (call.encode(), when)
                with failing(server.process, call, error, when, tmp_path):
                    try:
                        kept[upload(client, content).id] = content
                    except openai.InternalServerError:
                        refused.append((call, when))
                assert server.process.poll() is None
                # The disk works again, and so does the server.
                again = upload(client, content)
                kept[again.id] = content
                assert {one.id for one in client.files.list()} == set(kept), (call, when)
        for file_id, content in kept.items():
            assert client.files.content(file_id).content == content
    # Each of these calls is needed for a promise: its failure is never taken for success.
    assert {("fsync", 1), ("fsync", 2), ("fdatasync", 1), ("rename", 1)} <= set(refused)
    assert list((tmp_path / "home" / "files").glob(".*.part")) == []
    server.stop()
    with sqlite3.connect(tmp_path / "home" / "record.db") as record:
        assert record.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert record.execute("PRAGMA foreign_key_check").fetchall() == []
