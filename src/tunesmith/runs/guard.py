"""The process between a worker and an attempt: it ends the attempt when the worker falls silent.

    python -m tunesmith.runs.guard --silence-seconds 20 --log FILE --log-bytes 4000000 -- COMMAND...

It leads a process group of its own. The worker writes to its standard input when it last knew, by the clock of
`steady_seconds`, that the lease holds (a line with that number). Once the last such moment is too long ago, or the
input ends because the worker has died, the guard kills the whole group, itself included. As it does nothing else,
nothing can keep it from that: no step that takes minutes, no database that doesn't answer.

It also keeps what the attempt prints: the beginning and the end of it, whatever comes between.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from tunesmith.runs.process_identity import steady_seconds

_PR_SET_PDEATHSIG = 1
#: The guard's number, for what it guards.
_VARIABLE = "TUNESMITH_GUARD"
_PIECE_BYTES = 1 << 16
#: How often it looks whether the attempt has ended, and how long it listens for last words then.
_LOOK_SECONDS, _LAST_WORDS_SECONDS = 0.1, 2.0


def end_with_guard() -> None:
    """Let this process end with its guard, which leads its group, and before others when memory runs out (Linux)."""
    guard = os.environ.get(_VARIABLE)
    if sys.platform != "linux" or guard is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(guard):
        os.kill(os.getpid(), signal.SIGKILL)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")


class CappedLog:
    """A file that keeps the first and the last bytes of what is written to it, half of `most_bytes` each."""

    def __init__(self, path: Path, most_bytes: int) -> None:
        self._file: BinaryIO = path.open("wb", buffering=0)
        self._room = most_bytes // 2
        self._most_tail = most_bytes // 2
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self._left_out = 0

    def write(self, piece: bytes) -> None:
        """Take what was printed; a full disk doesn't stop the attempt."""
        head, rest = piece[: self._room], piece[self._room :]
        self._room -= len(head)
        self._write(head)
        if not rest:
            return
        self._tail.append(rest)
        self._tail_bytes += len(rest)
        while self._tail_bytes - len(self._tail[0]) >= self._most_tail:
            gone = self._tail.popleft()
            self._tail_bytes -= len(gone)
            self._left_out += len(gone)

    def close(self) -> None:
        """Write the end."""
        if self._left_out:
            self._write(f"\n... {self._left_out:,} bytes left out ...\n".encode())
        self._write(b"".join(self._tail))
        self._file.close()

    def _write(self, piece: bytes) -> None:
        try:
            self._file.write(piece)
        except OSError:
            self._room = 0


class Guard:
    """Watches one attempt.

    Args:
        command: what to run.
        silence_seconds: how long the last word of the worker counts.
        log: keeps what the attempt prints.
        end: ends the whole group; returns never.
    """

    def __init__(self, command: Sequence[str], silence_seconds: float, log: CappedLog, end: Callable[[], None]) -> None:
        self._silence_seconds = silence_seconds
        self._log = log
        self._end = end
        self._last_word = steady_seconds()
        self._unread = b""
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            # The locks on its devices are inherited.
            close_fds=False,
            env={**os.environ, _VARIABLE: str(os.getpid())},
        )

    def watch(self) -> int:
        """Watch until the attempt has ended; return how, as a shell would."""
        assert self._child.stdout is not None
        printed = self._child.stdout.fileno()
        listening = selectors.DefaultSelector()
        for descriptor in (0, printed):
            os.set_blocking(descriptor, False)
            listening.register(descriptor, selectors.EVENT_READ)
        last_words_until = 0.0
        while True:
            # First the clock: after a standstill, old words in the pipe don't count.
            if steady_seconds() - self._last_word > self._silence_seconds:
                self._end()
            for key, _ in listening.select(_LOOK_SECONDS):
                piece = _read(key.fd)
                if key.fd == 0:
                    self._hear(piece)
                elif piece:
                    self._log.write(piece)
                else:
                    listening.unregister(printed)
            if self._child.poll() is None:
                continue
            # Whoever inherited the pipe may keep it open.
            last_words_until = last_words_until or time.monotonic() + _LAST_WORDS_SECONDS
            if printed not in listening.get_map() or time.monotonic() > last_words_until:
                break
        self._log.close()
        code = self._child.returncode
        return code if code >= 0 else 128 - code

    def _hear(self, piece: bytes | None) -> None:
        """Take the worker's words; without a worker, end."""
        if piece == b"":
            self._end()
        *lines, self._unread = (self._unread + (piece or b"")).split(b"\n")
        if lines:
            self._last_word = max(self._last_word, float(lines[-1]))


def _read(descriptor: int) -> bytes | None:
    """Return what is there, b"" at the end, None where there was nothing after all."""
    try:
        return os.read(descriptor, _PIECE_BYTES)
    except BlockingIOError:
        return None


def _end_group() -> None:
    os.killpg(0, signal.SIGKILL)


def main() -> int:
    """Run the guard as its arguments say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--silence-seconds", type=float, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--log-bytes", type=int, required=True)
    parser.add_argument("command", nargs="+")
    asked = parser.parse_args()
    # The worker tells the whole group to stop; the attempt does, its guard stays for it. A handler, for the attempt
    # would inherit that a signal is ignored.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return Guard(asked.command, asked.silence_seconds, CappedLog(asked.log, asked.log_bytes), _end_group).watch()


if __name__ == "__main__":
    sys.exit(main())
