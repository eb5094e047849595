"""Attempts that train nothing: `python fake_attempt.py MODE --job ... --fence ...` under a worker's guard."""

import argparse
import ctypes
import os
import signal
import sys
import time

from tunesmith.record.database import Database
from tunesmith.record.home import Home
from tunesmith.record.job_events import NewEvent, add_events
from tunesmith.record.job_leases import fenced
from tunesmith.record.jobs import move_job
from tunesmith.runs.exit_codes import CRASHED, DONE, INTERRUPTED
from tunesmith.runs.guard import end_with_guard


def succeed(database, job_id, fence):
    with database.write() as connection:
        job = fenced(connection, job_id, fence)
        add_events(connection, job_id, [NewEvent(f"done by {fence}")])
        move_job(connection, job, "succeeded", "finished")


def is_interrupted():
    """Whether somebody has asked to stop, in some seconds."""
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    give_up = time.monotonic() + 600
    while not asked and time.monotonic() < give_up:
        time.sleep(0.02)
    return bool(asked)


def work(mode, database, job_id, fence):
    if mode == "crash":
        return CRASHED
    if mode == "wait":
        return INTERRUPTED if is_interrupted() else CRASHED
    if mode == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    if mode == "noise":
        for _ in range(256):
            os.write(1, b"x" * (1 << 20))
        print("the end")
    if mode == "hold":
        # PyDLL keeps the interpreter's lock: no thread of this process runs meanwhile.
        ctypes.PyDLL(None).sleep(int(os.environ["HOLD_SECONDS"]))
    if mode == "memory":
        blocks = []
        while True:
            blocks.append(bytearray(64 << 20))
    succeed(database, job_id, fence)
    if mode == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    return DONE


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("mode")
    parser.add_argument("--job")
    parser.add_argument("--fence", type=int)
    asked = parser.parse_args()
    end_with_guard()
    if asked.mode == "memory":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    try:
        sys.exit(work(asked.mode, Database.from_environment(Home.from_environment()), asked.job, asked.fence))
    except MemoryError:
        sys.exit(77)
