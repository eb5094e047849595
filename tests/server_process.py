"""A real server process for tests."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

_PROGRAM = """
import json, sys
from tunesmith.record.home import Home
from tunesmith.rest.server import run_server
from tunesmith.specs.serving import ServeSpec

spec = ServeSpec.parse(json.loads(sys.argv[1]))
run_server(spec, Home.from_environment(), on_ready=lambda url: print(url, flush=True))
"""


@dataclass
class ServerProcess:
    """A running server: its address and its process."""

    url: str
    process: subprocess.Popen[str]
    errors: Path

    def figure(self, name: str, key: str = "none") -> float:
        """Return what it tells Prometheus under a name with its labels."""
        page = httpx.get(f"{self.url}/metrics", headers={"authorization": f"Bearer {key}"}).text
        return next(float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith(f"{name} "))

    def answer_tokens(self) -> float:
        """Return how many tokens its models have written, for callers who waited for them and for those who left.

        It tells how much was computed in vain, however fast or busy the machine is.
        """
        return self.figure('tunesmith_tokens_total{kind="answer"}')

    def wait_for_answers(self, count: int, key: str = "none") -> None:
        """Wait until so many answers wait or grow, no more and no less."""
        give_up = time.monotonic() + 120
        while (found := self.figure("tunesmith_answers_unfinished", key)) != count:
            assert time.monotonic() < give_up, found
            time.sleep(0.02)

    def stop(self, with_signal: int = signal.SIGTERM) -> int:
        """Tell it to stop; return its exit code."""
        self.process.send_signal(with_signal)
        return self.process.wait(timeout=120)


@contextlib.contextmanager
def running_server(folder: Path, home: Path, *, prelude: str = "", **settings: object) -> Iterator[ServerProcess]:
    """Start a server on a free port and wait until it answers; `prelude` is Python that runs in it before."""
    folder.mkdir(parents=True, exist_ok=True)
    errors = folder / "server.log"
    with errors.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", prelude + _PROGRAM, json.dumps({"port": 0, "workers": 0, **settings})],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "TUNESMITH_HOME": str(home), "OMP_NUM_THREADS": "1"},
        )
        alarm = threading.Timer(300, process.kill)
        alarm.start()
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            alarm.cancel()  # it bounds the start only: a session's server lives as long as its tests
            assert url, errors.read_text()
            yield ServerProcess(url, process, errors)
        finally:
            alarm.cancel()
            process.kill()
            process.wait()
