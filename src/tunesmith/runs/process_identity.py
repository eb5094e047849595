"""Which process this is: another one with its number, or of an earlier start of the machine, isn't taken for it.

identity = ProcessIdentity.of_this()     `3f2a9c01.77e0b2d4.4242.193847`: machine, its start, process, its start
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


def steady_seconds() -> float:
    """Return the seconds of a clock that nobody sets, and that goes on while the machine sleeps (where it can)."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process: `machine` is where its number means something, `boot` one start of that machine."""

    machine: str
    boot: str
    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """Return the identity of a process of this machine, None if there is none."""
        started = _start_of(pid)
        return None if started is None else cls(_machine(), _boot(), pid, started)

    @classmethod
    def of_this(cls) -> ProcessIdentity:
        """Return this process's identity."""
        found = cls.of(os.getpid())
        assert found is not None
        return found

    @classmethod
    def parse(cls, text: str) -> ProcessIdentity | None:
        """Return what `str` gave, or None if it is something else."""
        parts = text.split(".")
        if len(parts) < 4 or not parts[2].isdigit():
            return None
        return cls(parts[0], parts[1], int(parts[2]), parts[3])

    def __str__(self) -> str:
        return f"{self.machine}.{self.boot}.{self.pid}.{self.started}"

    def is_certainly_gone(self) -> bool:
        """Whether the process has ended for certain; of another machine's nothing is certain."""
        if self.machine != _machine():
            return False
        return self.boot != _boot() or _start_of(self.pid) != self.started

    def kill_group(self) -> None:
        """End its process group at once, if it is on this machine and still the one it was."""
        if self.machine == _machine() and self.boot == _boot() and _start_of(self.pid) == self.started:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(os.getpgid(self.pid), signal.SIGKILL)


def _machine() -> str:
    """Return what tells apart places where process numbers mean different things: machines and their containers."""
    try:
        space = (_PROC / "self" / "ns" / "pid").readlink().name
    except OSError:
        space = ""
    return _short(f"{socket.gethostname()}\0{space}")


def _boot() -> str:
    """Return what changes with each start of the machine."""
    try:
        return _short((_PROC / "sys" / "kernel" / "random" / "boot_id").read_text(encoding="ascii"))
    except OSError:
        return "0"


def _start_of(pid: int) -> str | None:
    """Return when a process started, in the system's own words; None if it has ended."""
    try:
        after_name = (
            (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
    except OSError:
        return _alive_without_proc(pid)
    # State Z: it has ended, only its parent hasn't asked yet.
    return None if after_name[0] in ("Z", "X") else after_name[19]


def _alive_without_proc(pid: int) -> str | None:
    """Return "0" for a living process where the system doesn't say when it started, None for one that has ended."""
    if _PROC.joinpath("self").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return "0"
    return "0"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
