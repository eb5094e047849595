"""Fair turns: whoever waits longest writes next, among the threads of a process and among processes."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from pathlib import Path

from tunesmith.errors import storage_errors

# Windows has no such locks; there, SQLite's own lock decides alone, and isn't quite fair.
if sys.platform != "win32":
    import fcntl

_POLL_SECONDS = 0.0005
_LONGEST_POLL_SECONDS = 0.004


class FairLock:
    """A lock that is handed to the thread that has waited longest, so that a busy one can't keep it for itself."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: deque[_Place] = deque()
        self._owner: int | None = None

    @property
    def is_mine(self) -> bool:
        """Whether this thread has the turn."""
        return self._owner == threading.get_ident()

    def acquire(self, timeout_seconds: float) -> bool:
        """Wait for the turn, and return whether it came in time.

        Raises:
            RuntimeError: this thread has the turn already; waiting for itself would never end.
        """
        me = threading.get_ident()
        with self._guard:
            if self._owner == me:
                raise RuntimeError("a write inside a write of the same thread")
            if self._owner is None:
                self._owner = me
                return True
            place = _Place(me)
            self._waiting.append(place)
        came = False
        try:
            came = place.called.acquire(timeout=max(0.0, timeout_seconds))
        finally:
            if not came:
                came = self._leave(place)
        return came

    def release(self) -> None:
        """Hand the turn to whoever has waited longest."""
        with self._guard:
            if self._waiting:
                place = self._waiting.popleft()
                self._owner = place.thread
                place.called.release()
            else:
                self._owner = None

    def _leave(self, place: _Place) -> bool:
        """Stop waiting, and return False; or True where the turn came just now."""
        with self._guard:
            if place in self._waiting:
                self._waiting.remove(place)
                return False
            return True


class _Place:
    """A place in the line."""

    def __init__(self, thread: int) -> None:
        self.thread = thread
        self.called = threading.Lock()
        self.called.acquire()


class ProcessTurn:
    """Who of several processes may ask for the database's write lock next.

    SQLite gives its lock to whoever asks at the right moment, so a process that writes without a pause could keep all
    others out for good. One process at a time may ask here: the one that has just written must wait behind it. It is
    only about fairness: correctness is SQLite's lock alone. The lock on the file goes with its process.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self, deadline: float) -> bool:
        """Wait for the turn until `time.monotonic()` is `deadline`, and return whether it came.

        Raises:
            StorageError: the file can't be opened.
        """
        if sys.platform == "win32":
            return True
        if self._descriptor is None:
            with storage_errors(self._path.parent):
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        poll_seconds = _POLL_SECONDS
        while True:
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    return False
                time.sleep(poll_seconds)
                poll_seconds = min(1.1 * poll_seconds, _LONGEST_POLL_SECONDS)
            else:
                return True

    def release(self) -> None:
        """Let the next process ask."""
        if sys.platform != "win32" and self._descriptor is not None:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
