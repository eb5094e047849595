"""One step at a time: models in one process take turns, in the order in which they asked.

Two models that compute at once would each start a thread for every core and slow each other down many-fold. A plain
lock would do, but the thread that gives it back can take it again before any other wakes up.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """A lock that is handed on in the order of asking."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: deque[threading.Lock] = deque()

    @contextmanager
    def take(self) -> Iterator[None]:
        """Wait for a turn and keep it for the block."""
        mine = threading.Lock()
        mine.acquire()
        with self._lock:
            is_first = not self._queue
            self._queue.append(mine)
        if not is_first:
            mine.acquire()
        try:
            yield
        finally:
            with self._lock:
                self._queue.popleft()
                if self._queue:
                    self._queue[0].release()
