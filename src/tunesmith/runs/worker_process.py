"""A worker as a process: signals, a parent to end with, and the way to start one."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

from tunesmith.record.database import Database
from tunesmith.record.home import Home
from tunesmith.runs.devices import check_device_names
from tunesmith.runs.worker import Worker, WorkerSettings
from tunesmith.specs.serving import LogFormat

__all__ = ["WorkerProcess", "WorkerSettings", "run_worker", "worker_processes"]

_log = logging.getLogger(__name__)

#: A worker that its server started ends when this pipe does.
_WITH_PARENT = "TUNESMITH_WORKER_PARENT_PIPE"
#: Attempts get 22 s to keep their work, the rest is for the record.
_STOP_SECONDS = 28.0
_REPLACE_SECONDS = 2.0


def run_worker(settings: WorkerSettings, home: Home, *, on_ready: Callable[[str], object] | None = None) -> None:
    """Work until the process is told to stop (SIGINT, SIGTERM), or its server has gone.

    Args:
        settings: how.
        home: where attempts keep their folders.
        on_ready: called with the worker's name once it takes jobs.

    Raises:
        SpecError: there is no such device.
        StorageError: the record can't be opened.
    """
    check_device_names(settings.devices or ())
    home.check_writable()
    Database.from_environment(home).migrate()
    worker = Worker(home, lambda: Database.from_environment(home), settings)
    pipe = os.environ.pop(_WITH_PARENT, None)
    if pipe is not None:
        threading.Thread(target=_stop_with_parent, args=(int(pipe), worker), daemon=True).start()
    with _stopped_by_signals(worker):
        if on_ready is not None:
            on_ready(worker.owner)
        worker.run()


class WorkerProcess:
    """A worker that this process started, and that ends with it.

    Args:
        environment: its variables; this process's own by default.
        log_format: how it logs.
    """

    def __init__(self, environment: Mapping[str, str] | None = None, log_format: LogFormat = "text") -> None:
        reading, writing = os.pipe()
        variables = {**(os.environ if environment is None else environment), _WITH_PARENT: str(reading)}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tunesmith", "worker", "--log-format", log_format],
                stdin=subprocess.DEVNULL,
                env=variables,
                pass_fds=(reading,),
                # Ctrl-C in the terminal is for the server, which then stops its workers in order.
                start_new_session=True,
            )
        except BaseException:
            os.close(writing)
            raise
        finally:
            os.close(reading)
        self._writing: int | None = writing

    @property
    def is_running(self) -> bool:
        """Whether it hasn't ended."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Ask it to let its attempts keep their work, give their jobs back, and end."""
        if self.is_running:
            self._process.terminate()

    def wait(self) -> None:
        """Wait until it has ended; one that doesn't is killed, and its attempts with it."""
        try:
            self._process.wait(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._writing is not None:
            os.close(self._writing)
            self._writing = None


@contextmanager
def worker_processes(count: int, log_format: LogFormat = "text") -> Iterator[Callable[[], None]]:
    """Keep so many workers running while the block does; one that ends by itself is replaced.

    Yields what asks them to stop, which takes a while; the block's end asks too, and waits.

    Args:
        count: how many.
        log_format: how they log.
    """
    has_ended = threading.Event()
    running = [WorkerProcess(log_format=log_format) for _ in range(count)]

    def replace() -> None:
        while not has_ended.wait(_REPLACE_SECONDS):
            for number, one in enumerate(running):
                if one.is_running or has_ended.is_set():
                    continue
                _log.warning("a worker has ended; another one starts")
                one.wait()
                try:
                    running[number] = WorkerProcess(log_format=log_format)
                # The system has no room for a process; a later round tries again.
                except OSError as error:
                    _log.warning("no worker can be started now: %s", error)

    keeper = threading.Thread(target=replace, name="workers", daemon=True)
    keeper.start()

    def stop() -> None:
        has_ended.set()
        keeper.join()
        for one in running:
            one.stop()

    try:
        yield stop
    finally:
        stop()
        for one in running:
            one.wait()


def _stop_with_parent(pipe: int, worker: Worker) -> None:
    """Wait for the pipe's end, which is the parent's."""
    while os.read(pipe, 1):
        pass
    _log.warning("the server has gone; the worker stops")
    worker.stop()


@contextmanager
def _stopped_by_signals(worker: Worker) -> Iterator[None]:
    """Stop the worker on SIGINT and SIGTERM."""

    def stop(_: int, __: FrameType | None) -> None:
        worker.stop()

    before = {one: signal.signal(one, stop) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
