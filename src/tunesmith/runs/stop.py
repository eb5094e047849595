"""Ctrl-C as a wish: the run ends its step, writes a checkpoint, and stops."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopWish:
    """Whether somebody asked the run to stop."""

    def __init__(self) -> None:
        self._asked = threading.Event()

    def ask(self) -> None:
        """Ask the run to stop at the next step."""
        self._asked.set()

    def __call__(self) -> bool:
        """Return whether it was asked."""
        return self._asked.is_set()


@contextmanager
def stop_on_signals(wish: StopWish) -> Iterator[None]:
    """Turn SIGINT and SIGTERM into a wish; a second SIGINT interrupts at once. Outside the main thread: nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if wish() and number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        wish.ask()

    earlier = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
