"""L06: a burst of jobs for a few workers; then single jobs for workers with nothing to do."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import func, select

from load.bars import Load, milliseconds, none_of
from load.crowd import Asked, Caller, percentile
from load.filled import add_blob
from load.mixture import ROWS, create_job, upload
from load.server import LoadServer, new_home, serving
from tunesmith.record.access import DEFAULT_PROJECT
from tunesmith.record.jobs import NewJob, change_job
from tunesmith.record.tables import events, jobs
from tunesmith.runs.queue import submit_job

_ENDS = ("succeeded", "failed", "cancelled")
_PATIENCE_SECONDS = 1800.0


def measure(count: int = 1_000, workers: int = 4, singles: int = 100) -> Load:
    """Create so many jobs at once, wait for all, then queue some one by one."""
    with new_home() as home, serving(home) as server:
        caller = Caller(server.url)
        file = upload(caller)
        began = time.monotonic()
        for _ in range(count):
            create_job(caller, file)
        creating_seconds = time.monotonic() - began
        with _workers(server, workers):
            began = time.monotonic()
            _wait_over(server, count)
            working_seconds = time.monotonic() - began
            twice = _told_more_than_once(server)
            claims = [_claim_one(server) for _ in range(singles)]
        caller.close()
        lost = count - _succeeded(server, count)
    work = (
        f"{count:,} jobs created one after the other in {creating_seconds:.0f} s, {workers} workers whose attempts end "
        f"at once: all done in {working_seconds:.0f} s; then {singles} jobs queued one by one"
    )
    return Load(
        "L06",
        work,
        [
            none_of("jobs lost or failed", lost),
            none_of("jobs done twice", twice),
            milliseconds("p99 from queued to claimed, workers idle", percentile(claims, 0.99), 1000),
        ],
    )


@contextlib.contextmanager
def _workers(server: LoadServer, count: int) -> Iterator[None]:
    here = Path(__file__).parent
    attempt = [sys.executable, str(here / "noop_attempt.py"), str(server.home.root / "record.db")]
    variables = {**os.environ, "TUNESMITH_HOME": str(server.home.root), "OMP_NUM_THREADS": "1"}
    with (server.home.root / "workers.log").open("wb") as log:
        running = [
            subprocess.Popen(
                [sys.executable, str(here / "noop_worker.py"), json.dumps(attempt), f"cpu:{number}"],
                env=variables,
                stdout=log,
                stderr=log,
            )
            for number in range(count)
        ]
    try:
        yield
    finally:
        for one in running:
            one.terminate()
        for one in running:
            one.wait(timeout=60)


def _wait_over(server: LoadServer, count: int) -> None:
    give_up = time.monotonic() + _PATIENCE_SECONDS
    while _over(server) < count:
        if time.monotonic() > give_up:
            raise SystemExit(f"after {_PATIENCE_SECONDS:.0f} s {_over(server)} of {count} jobs are over")
        time.sleep(0.5)


def _over(server: LoadServer) -> int:
    with server.database.read() as connection:
        return connection.scalar(select(func.count()).where(jobs.c.state.in_(_ENDS))) or 0


def _succeeded(server: LoadServer, count: int) -> int:
    """Return how many of the first so many jobs ended well."""
    with server.database.read() as connection:
        first = select(jobs.c.state).order_by(jobs.c.seq).limit(count).subquery()
        return connection.scalar(select(func.count()).where(first.c.state == "succeeded")) or 0


def _told_more_than_once(server: LoadServer) -> int:
    with server.database.read() as connection:
        done = select(events.c.job_id).where(events.c.message.like("done by %")).group_by(events.c.job_id)
        return len(connection.execute(done.having(func.count() > 1)).all())


def _claim_one(server: LoadServer) -> Asked:
    """Queue a job whose files were looked at; return how long it waited for its worker."""
    blob = add_blob(server.home, server.database, ROWS)
    new = NewJob(
        project_id=DEFAULT_PROJECT, model="none", base="none", seed=1, method={"type": "supervised"}, spec={},
        training_file="file-none", training_sha256=blob.sha256,
    )  # fmt: skip
    with server.database.write() as connection:
        job = submit_job(connection, new)
        change_job(connection, job.id, state="queued")
    began = time.monotonic()
    is_claimed = False
    while True:
        with server.database.read() as connection:
            state = connection.scalar(select(jobs.c.state).where(jobs.c.id == job.id))
        if state != "queued" and not is_claimed:
            is_claimed, seconds = True, time.monotonic() - began
        if state in _ENDS:
            return Asked("claim", began, seconds, 200)
        time.sleep(0.005)
