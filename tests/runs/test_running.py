"""A worker's child: what the thread of beats may do to it at any moment."""

import os
import sys
import threading
import time

import pytest

from job_workers import JobBench
from tunesmith.record.database import Database
from tunesmith.record.jobs import move_job
from tunesmith.runs.process_identity import steady_seconds
from tunesmith.runs.running import Running, Watch
from tunesmith.runs.worker import Worker, WorkerSettings


def started(tmp_path, program, silence_seconds=20.0):
    watch = Watch(silence_seconds, tmp_path / "log", 1000)
    return Running([sys.executable, "-c", program], watch, dict(os.environ))


def wait_ended(running):
    give_up = time.monotonic() + 60
    while not running.has_ended():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def test_one_that_has_ended_may_still_be_confirmed(tmp_path):
    running = started(tmp_path, "pass")
    wait_ended(running)
    other = (tmp_path / "other").open("w+")  # likely with the number that the pipe had
    running.confirm(steady_seconds())
    assert running.exit_code == 0 and not running.was_stopped
    other.seek(0)
    assert other.read() == ""
    other.close()


def test_an_end_by_silence_is_no_crash_and_another_kill_is(tmp_path):
    silent = started(tmp_path, "import time; time.sleep(60)", silence_seconds=1.0)
    wait_ended(silent)
    assert (silent.exit_code, silent.was_stopped) == (137, True)
    killed = started(tmp_path, "import os; os.killpg(0, 9)")
    wait_ended(killed)
    assert (killed.exit_code, killed.was_stopped) == (137, False)


def test_a_worker_that_cannot_beat_any_more_ends(home, database, monkeypatch, caplog):
    def broken(_):
        raise ValueError("a fault")

    monkeypatch.setattr(Worker, "_beat", broken)
    worker = Worker(home, lambda: database, WorkerSettings(beat_seconds=0.05, look_seconds=0.05, devices=("cpu",)))
    at_work = threading.Thread(target=worker.run)
    at_work.start()
    at_work.join(timeout=120)
    assert not at_work.is_alive() and "no sign of life" in caplog.text


def test_a_device_is_free_again_when_its_attempt_could_not_be_started(home, database_url, tmp_path):
    bench = JobBench(home, database_url, tmp_path)
    job = bench.submit()
    with bench.database.write() as connection:
        move_job(connection, job, "queued", "queued")
    in_the_way = home.jobs / job.id
    in_the_way.touch()  # where the folder of its logs should be
    settings = WorkerSettings(look_seconds=0.05, devices=("cpu",), attempt=(sys.executable, "-c", "pass"))
    worker = Worker(home, lambda: Database(database_url), settings)
    at_work = threading.Thread(target=worker.run)
    at_work.start()
    try:
        bench.wait(lambda: bench.job(job.id).attempts, "nobody took the job")
        in_the_way.unlink()
        bench.wait(lambda: list(in_the_way.glob("attempt-*.log")), "no other attempt was started")
    finally:
        worker.stop()
        at_work.join(timeout=60)
        bench.close()
    assert not at_work.is_alive()


pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="process groups")
