"""One attempt at a time works in a job's folders, also where an older one was frozen and comes back."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from tunesmith.errors import RunError
from tunesmith.runs.process_identity import ProcessIdentity

if sys.platform != "win32":
    import fcntl

_PATIENCE_SECONDS = 1.0
_LONGEST_SECONDS = 10.0
_LOOK_SECONDS = 0.05


def lock_job(folder: Path) -> int:
    """Lock a job's folder for this process until it ends; return the descriptor that holds the lock.

    Whoever calls this has the job's lease, so another holder is an attempt that lost it. If it is on this machine and
    doesn't end on its own, it is killed.

    Raises:
        RunError: it can't be ended from here (`job_folder_locked`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    started = time.monotonic()
    while not _lock(descriptor):
        waited = time.monotonic() - started
        if waited > _PATIENCE_SECONDS:
            end_holder(folder)
        if waited > _LONGEST_SECONDS:
            raise RunError("Another attempt still works in this job's folder.", code="job_folder_locked")
        time.sleep(_LOOK_SECONDS)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(ProcessIdentity.of_this()).encode("ascii"), 0)
    return descriptor


def end_holder(folder: Path) -> None:
    """Kill the attempt that has a job's folder locked, if it is on this machine; only after it lost its lease."""
    try:
        holder = ProcessIdentity.parse((folder / "lock").read_text(encoding="ascii", errors="replace"))
    except FileNotFoundError:
        return
    if holder is not None:
        holder.kill_group()


def _lock(descriptor: int) -> bool:
    if sys.platform != "win32":
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
