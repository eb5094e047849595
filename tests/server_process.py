"""A real server process for tests."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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
