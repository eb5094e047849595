"""A server of one's own for a load, as a real process, and what it costs."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tunesmith.record.database import Database
from tunesmith.record.home import Home

_PROGRAM = """
import json, sys
from tunesmith.record.home import Home
from tunesmith.rest.server import run_server
from tunesmith.specs.serving import ServeSpec

spec = ServeSpec.parse(json.loads(sys.argv[1]))
run_server(spec, Home.from_environment(), on_ready=lambda url: print(url, flush=True))
"""
_SAMPLE_SECONDS = 0.1


@dataclass
class LoadServer:
    """A running server with what stands behind it."""

    url: str
    home: Home
    database: Database
    process: subprocess.Popen[str]

    def memory_bytes(self) -> int:
        """Return the memory of the server and of its children."""
        server = psutil.Process(self.process.pid)
        total = 0
        for one in (server, *server.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += one.memory_info().rss
        return total


class MemoryWatch:
    """Looks at a server's memory all the time; `most_bytes` is the most that it saw."""

    def __init__(self, server: LoadServer) -> None:
        self.before_bytes = server.memory_bytes()
        self.most_bytes = self.before_bytes
        self._server = server
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> MemoryWatch:
        """Begin to look."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Look no more."""
        self._has_ended.set()
        self._thread.join()

    @property
    def grown_bytes(self) -> int:
        """How much more it was than before."""
        return self.most_bytes - self.before_bytes

    def _look(self) -> None:
        while not self._has_ended.wait(_SAMPLE_SECONDS):
            self.most_bytes = max(self.most_bytes, self._server.memory_bytes())


@contextlib.contextmanager
def new_home() -> Iterator[Home]:
    """Make a home that goes with the block."""
    with tempfile.TemporaryDirectory(prefix="tunesmith-load-") as folder:
        home = Home(Path(folder) / "home")
        home.check_writable()
        yield home


@contextlib.contextmanager
def serving(home: Home, threads: int = 1, **settings: object) -> Iterator[LoadServer]:
    """Start a server on a home's own record and stop it with the block.

    Args:
        home: where it keeps everything.
        threads: how many threads its numerical libraries may use.
        settings: those of `ServeSpec`; no workers unless asked for.
    """
    log_file = home.root / "server.log"
    variables = {name: value for name, value in os.environ.items() if not name.startswith("TUNESMITH_")}
    with log_file.open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, json.dumps({"port": 0, "workers": 0, **settings})],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**variables, "TUNESMITH_HOME": str(home.root), "OMP_NUM_THREADS": str(threads)},
        )
    database = Database(f"sqlite:///{home.root / 'record.db'}")
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            raise SystemExit(log_file.read_text(encoding="utf-8"))
        yield LoadServer(url, home, database, process)
    finally:
        database.close()
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def disk_rate(folder: Path, size_bytes: int = 256 << 20) -> float:
    """Return how many bytes a second a plain program writes and syncs in a folder."""
    block = os.urandom(1 << 20)
    file = folder / "disk-rate"
    began = time.monotonic()
    with file.open("wb") as writing:
        for _ in range(size_bytes >> 20):
            writing.write(block)
        writing.flush()
        os.fsync(writing.fileno())
    seconds = time.monotonic() - began
    file.unlink()
    return size_bytes / seconds
