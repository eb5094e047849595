"""A kept command never outlives its parent, however that ends, and its log stays small."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tunesmith.generate.vllm import keeper

#: Starts a process of its own, writes both numbers, and stays; deaf to polite requests if told so.
COMMAND = """
import os, signal, subprocess, sys, time
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "1000"])
print(os.getpid(), child.pid, flush=True)
time.sleep(1000)
"""

PARENT = """
import subprocess, sys, time
kept = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, start_new_session=True)
time.sleep(1000)
"""


def keep(log: Path, *command: str, log_bytes: int = 10_000) -> subprocess.Popen[bytes]:
    keeping = [sys.executable, "-I", keeper.__file__, str(log), str(log_bytes), *command]
    return subprocess.Popen(keeping, stdin=subprocess.PIPE, start_new_session=True)


def written(log: Path) -> list[int]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if log.exists() and log.read_text().endswith("\n"):
            return [int(number) for number in log.read_text().split()]
        time.sleep(0.05)
    raise AssertionError("nothing was written")


def wait_until_gone(*processes: int) -> None:
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{number}").exists() and _state(number) != "Z" for number in processes):
        assert time.monotonic() < deadline, "a process is left"
        time.sleep(0.05)


def _state(number: int) -> str:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.mark.parametrize("manner", ["polite", "deaf"])
def test_closing_the_pipe_ends_all_processes(tmp_path, manner):
    kept = keep(tmp_path / "log", sys.executable, "-c", COMMAND, manner)
    numbers = written(tmp_path / "log")
    kept.stdin.close()
    status = kept.wait(timeout=60)
    assert status == 128 + (signal.SIGTERM if manner == "polite" else signal.SIGKILL)
    wait_until_gone(*numbers)


def test_all_processes_end_when_the_parent_is_killed(tmp_path):
    keeping = [sys.executable, "-I", keeper.__file__, str(tmp_path / "log"), "10000", sys.executable, "-c", COMMAND]
    parent = subprocess.Popen([sys.executable, "-c", PARENT, *keeping])
    numbers = written(tmp_path / "log")
    parent.kill()
    parent.wait()
    wait_until_gone(*numbers)


def test_what_a_command_leaves_behind_ends_with_it(tmp_path):
    kept = keep(tmp_path / "log", sys.executable, "-c", COMMAND)
    main, child = written(tmp_path / "log")
    os.kill(main, signal.SIGKILL)
    assert kept.wait(timeout=60) == 128 + signal.SIGKILL
    wait_until_gone(main, child)
    kept.stdin.close()


def test_the_status_is_the_commands(tmp_path):
    kept = keep(tmp_path / "log", sys.executable, "-c", "raise SystemExit(7)")
    assert kept.wait(timeout=60) == 7
    kept.stdin.close()


def test_the_log_keeps_its_size_and_its_end(tmp_path):
    log = keeper.CappedLog(tmp_path / "log", 1000)
    for number in range(400):
        log.write(f"line {number}\n".encode())
    log.write(b"x" * 5000)
    log.write(b"the end\n")
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(sizes) == 2
    assert sum(sizes) <= 1000
    assert (tmp_path / "log").read_bytes().endswith(b"the end\n")
