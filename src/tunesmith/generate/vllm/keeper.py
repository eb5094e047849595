"""Keeps one server: runs a command, writes its output to a file of bounded size, and never lets it outlive its parent.

    python keeper.py LOG LOG_BYTES COMMAND...

Run as a script, with nothing but the standard library. Standard input is a pipe that the parent holds open: when it
closes, because the parent closed it or because the parent is no more, however it ended, the command and all its
processes are ended too. The exit status is the command's; a signal's number comes as 128 and more.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO

#: How long the command's processes may take to end after they were asked to.
GRACE_SECONDS = 8.0

_POLL_SECONDS = 0.1
_CHUNK_BYTES = 65_536
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


class CappedLog:
    """A file that begins anew when it is full; what it held before is kept beside it, once, as `<name>.1`.

    Args:
        path: the file.
        most_bytes: bound on both files together.
    """

    def __init__(self, path: Path, most_bytes: int) -> None:
        self._path = path
        self._most_bytes = most_bytes // 2
        self._file: BinaryIO = path.open("wb", buffering=0)
        self._written_bytes = 0

    def write(self, text: bytes) -> None:
        """Add output."""
        for start in range(0, len(text), self._most_bytes):
            part = text[start : start + self._most_bytes]
            if self._written_bytes + len(part) > self._most_bytes:
                self._file.close()
                self._path.replace(self._path.with_name(self._path.name + ".1"))
                self._file = self._path.open("wb", buffering=0)
                self._written_bytes = 0
            self._file.write(part)
            self._written_bytes += len(part)


def keep(log: CappedLog, command: list[str], lifeline: int) -> int:
    """Run `command` until it ends or the file descriptor `lifeline` is closed at its other end; return its status."""
    _process_control(_PR_SET_CHILD_SUBREAPER, 1)  # what the command leaves behind becomes ours to end
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
        # Only one thread yet, the main one: the signal comes when this process ends, not at the end of a mere thread.
        preexec_fn=_die_with_parent,
    )
    assert child.stdout is not None
    output = child.stdout
    writer = threading.Thread(target=_copy, args=(output.fileno(), log), daemon=True)
    writer.start()
    while child.poll() is None:
        ready, _, _ = select.select([lifeline], [], [], _POLL_SECONDS)
        if ready and not os.read(lifeline, _CHUNK_BYTES):
            break
    _end_group(child)
    writer.join(timeout=1.0)
    status = child.wait()
    return status if status >= 0 else 128 - status


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """End the command's processes: asked first, then made to."""
    deadline = time.monotonic() + GRACE_SECONDS
    _signal_group(child.pid, signal.SIGTERM)
    while _is_running(child):
        if time.monotonic() > deadline:
            _signal_group(child.pid, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)


def _is_running(child: subprocess.Popen[bytes]) -> bool:
    """Whether a process of the command's group is left; those that ended are put away."""
    if child.poll() is None:
        return True
    try:
        while os.waitpid(-child.pid, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


def _copy(output: int, log: CappedLog) -> None:
    while text := os.read(output, _CHUNK_BYTES):
        log.write(text)


def _die_with_parent() -> None:
    _process_control(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _process_control(option: int, value: int) -> None:
    """Call Linux's `prctl`; other systems have none, and there the pipe alone must do."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def main() -> None:
    """Keep what the command line names."""
    # Ctrl-C in a terminal is for the parent, which then closes the pipe. A handler, as the command would inherit that
    # signals are ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    log_path, log_bytes, *command = sys.argv[1:]
    sys.exit(keep(CappedLog(Path(log_path), int(log_bytes)), command, sys.stdin.fileno()))


if __name__ == "__main__":
    main()
