"""A record that nobody can write to at the moment keeps those waiting who write to it, and nobody else."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx

from server_process import running_server
from tunesmith.record.database import Database
from tunesmith.record.store import Store
from tunesmith.rest import operation

#: More than the event loop has threads of its own, on any machine.
WAITING = 40


def test_who_waits_for_the_record_keeps_no_thread_from_others(database_url, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_DATABASE_URL", database_url)
    with running_server(tmp_path / "log", tmp_path / "home") as server, ThreadPoolExecutor(WAITING) as threads:
        cancel = f"{server.url}/v1/fine_tuning/jobs/ftjob-{'0' * 24}/cancel"
        assert httpx.post(cancel).status_code == 404
        with Database(database_url).write():
            waiting = [
                threads.submit(httpx.post, cancel, headers={"idempotency-key": "k"} if number % 2 else {}, timeout=60)
                for number in range(WAITING)
            ]
            time.sleep(1.0)
            began = time.monotonic()
            assert httpx.get(f"{server.url}/v1/models", timeout=20).status_code == 200
            seconds = time.monotonic() - began
            assert not any(one.done() for one in waiting)
            time.sleep(2.0)
        assert {one.result().status_code for one in waiting} == {404}
        assert seconds < 8.0  # less than those who wait for the record are kept waiting


def test_looks_at_a_record_that_hangs_take_no_threads_from_others(home, monkeypatch):
    monkeypatch.setattr(operation, "_PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(operation, "_BELIEVED_SECONDS", 0.0)
    ends = threading.Event()
    monkeypatch.setattr(Database, "check", lambda _: ends.wait(30))
    database = Database(f"sqlite:///{home.root / 'record.db'}")

    async def look_often():
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(4))
        with ThreadPoolExecutor(2) as threads:
            try:
                readiness = operation.Readiness(database, Store(home.root / "files"), threads)
                for _ in range(6):
                    assert "database" in await readiness.look()
                async with asyncio.timeout(20):
                    return await asyncio.to_thread(lambda: "others go on")
            finally:
                ends.set()

    assert asyncio.run(look_often()) == "others go on"
