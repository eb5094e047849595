"""A process under its guard, as its worker holds it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tunesmith.runs.devices import HeldDevice
from tunesmith.runs.process_identity import steady_seconds

_GUARD = (sys.executable, "-m", "tunesmith.runs.guard")


@dataclass(frozen=True, slots=True)
class Watch:
    """How a guard watches: how long the last word counts, and what it keeps of what is printed."""

    silence_seconds: float
    log: Path
    log_bytes: int


class Running:
    """One child of a worker: a guard, and what it guards.

    Args:
        command: what to run.
        watch: how.
        environment: the child's variables.
        job_id: what it works on; empty for what has no job of its own.
        fence: the number of the attempt.
        device: what it runs on. The child holds it too; once the worker has let it go, the child alone does.
    """

    def __init__(
        self,
        command: Sequence[str],
        watch: Watch,
        environment: Mapping[str, str],
        *,
        job_id: str = "",
        fence: int = 0,
        device: HeldDevice | None = None,
    ) -> None:
        self.job_id = job_id
        self.fence = fence
        self.device = None if device is None else device.name
        #: Whether it was told to stop, or ended because the worker couldn't confirm its lease: its end is no crash.
        self.was_stopped = False
        self._silence_seconds = watch.silence_seconds
        self._confirmed = steady_seconds()
        self.exit_code: int | None = None
        self._kill_at: float | None = None
        self._pipe_lock = threading.Lock()
        watch.log.parent.mkdir(parents=True, exist_ok=True)
        settings = ["--silence-seconds", str(watch.silence_seconds), "--log-bytes", str(watch.log_bytes)]
        self._guard = subprocess.Popen(
            [*_GUARD, *settings, "--log", str(watch.log), "--", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=dict(environment),
            start_new_session=True,
            pass_fds=() if device is None else (device.descriptor,),
        )
        assert self._guard.stdin is not None
        os.set_blocking(self._guard.stdin.fileno(), False)

    def confirm(self, steady: float) -> None:
        """Tell the guard that the lease held at that moment."""
        assert self._guard.stdin is not None
        # One that has ended, or is frozen for so long that the pipe is full, hears nothing. The pipe is closed by
        # another thread, and its number may soon be another file's.
        with self._pipe_lock, suppress(BrokenPipeError, BlockingIOError):
            if self._guard.stdin.closed:
                return
            os.write(self._guard.stdin.fileno(), f"{steady!r}\n".encode())
            self._confirmed = steady

    def stop(self, patience_seconds: float) -> None:
        """Ask it to keep its work and end; after so long it is killed. Asking again changes nothing."""
        if not self.was_stopped:
            self.was_stopped = True
            self._signal(signal.SIGTERM)
        self.kill_after(patience_seconds)

    def kill_after(self, seconds: float) -> None:
        """Kill it if it still runs after so long; the earliest such moment counts."""
        moment = time.monotonic() + seconds
        self._kill_at = moment if self._kill_at is None else min(self._kill_at, moment)

    def kill(self) -> None:
        """End it at once, with all that it started."""
        self._signal(signal.SIGKILL)

    def has_ended(self) -> bool:
        """Whether it is over, with all that it started; `exit_code` says how."""
        if self.exit_code is not None:
            return True
        if self._kill_at is not None and time.monotonic() > self._kill_at:
            self.kill()
        # Not reaped yet: as long as it isn't, its group's number is nobody else's.
        if os.waitid(os.P_PID, self._guard.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return False
        self.kill()
        code = self._guard.wait()
        self.exit_code = code if code >= 0 else 128 - code
        if code == -signal.SIGKILL and steady_seconds() - self._confirmed > self._silence_seconds:
            self.was_stopped = True
        assert self._guard.stdin is not None
        with self._pipe_lock, suppress(BrokenPipeError):
            self._guard.stdin.close()
        return True

    def _signal(self, number: signal.Signals) -> None:
        if self.exit_code is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._guard.pid, number)
