"""F04: told to stop under load, a server finishes what it has begun, refuses the rest, and keeps its jobs' work.

On SQLite alone: what a worker that stops writes is tested on both databases in `test_worker_faults.py`.
"""

from __future__ import annotations

import json
import signal
import threading
import time

import httpx
import psutil
import pytest

from job_workers import JobBench
from server_process import running_server
from tiny_models import LONG_ANSWER_TOKENS, save_slow_model

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "stream": True}
#: An answer that takes seconds, so that there is something to finish while the test looks; and time for it to end.
ANSWER_TOKENS, STOP_SECONDS = 2500, 240


@pytest.fixture
def bench(home, tiny_folder, monkeypatch):
    monkeypatch.delenv("TUNESMITH_DATABASE_URL", raising=False)
    bench = JobBench(home, f"sqlite:///{home.root / 'record.db'}", tiny_folder("smollm2"))
    yield bench
    bench.close()


@pytest.fixture(scope="module")
def slow_folder(tmp_path_factory):
    """A model that takes seconds for a long answer, and never ends one by itself."""
    return save_slow_model("smollm2", tmp_path_factory.mktemp("slow") / "slow")


class Listener(threading.Thread):
    """Reads a stream to its end."""

    def __init__(self, url, tokens):
        super().__init__(daemon=True)
        self.url = url
        self.tokens = tokens
        self.events = []
        self.has_begun = threading.Event()
        self.start()

    def run(self):
        body = {**HELLO, "model": "slow", "max_tokens": self.tokens}
        with httpx.stream("POST", self.url + CHAT, json=body, timeout=90) as reply:
            for line in reply.iter_lines():
                if line.startswith("data: "):
                    self.events.append(line.removeprefix("data: "))
                    if len(self.events) > 3:
                        self.has_begun.set()

    @property
    def finish_reason(self):
        """Why the answer ended, None for one that was cut off."""
        if self.events[-1] != "[DONE]":
            return None
        return json.loads(self.events[-2])["choices"][0]["finish_reason"]


def test_f04_streams_finish_new_requests_are_refused_and_the_job_waits_for_the_next_worker(
    bench, slow_folder, tmp_path
):
    settings = {"workers": 1, "models": [str(slow_folder)], "dtype": "float32", "shutdown_seconds": STOP_SECONDS}
    with running_server(tmp_path / "server", bench.home.root, **settings) as server:
        job = bench.submit(hyperparameters={"n_epochs": 200, "batch_size": 1})
        bench.wait_step(job.id, 5)
        listeners = [Listener(server.url, ANSWER_TOKENS) for _ in range(3)]
        with httpx.Client(base_url=server.url, timeout=30) as kept:
            for one in listeners:
                assert one.has_begun.wait(60)
            assert kept.get("/v1/models").status_code == 200
            family = psutil.Process(server.process.pid).children(recursive=True)
            server.process.send_signal(signal.SIGTERM)
            refusal = bench.wait(lambda: (now := kept.get("/v1/models")).status_code == 503 and now, "not refused", 30)
            assert refusal.json()["error"]["code"] == "stopping" and int(refusal.headers["retry-after"]) > 0
            assert refusal.headers["connection"] == "close" and refusal.headers["x-request-id"]
            # New callers hear the same, for as long as there is something to finish.
            assert httpx.post(server.url + CHAT, json={}).status_code == 503
            assert httpx.get(f"{server.url}/readyz").json()["missing"] == {"server": "It is being stopped."}
            assert httpx.get(f"{server.url}/healthz").status_code == 200
        assert server.process.wait(timeout=STOP_SECONDS) == 0
    for one in listeners:
        one.join(60)
        assert one.finish_reason == "length"
    assert not [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    kept_job = bench.job(job.id)
    assert (kept_job.state, kept_job.lease_owner, kept_job.attempts) == ("queued", None, 0)
    assert list((bench.home.runs / job.id / "checkpoints").glob("step-*"))


def test_f04_an_answer_that_takes_too_long_ends_with_a_word(home, slow_folder, tmp_path):
    settings = {"models": [str(slow_folder)], "dtype": "float32", "shutdown_seconds": 1}
    with running_server(tmp_path / "server", home.root, **settings) as server:
        listener = Listener(server.url, LONG_ANSWER_TOKENS)
        assert listener.has_begun.wait(60)
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 15  # not the 20 s that answers have unless it is said otherwise
    listener.join(60)
    assert json.loads(listener.events[-1])["error"]["code"] == "stopping"
