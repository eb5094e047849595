"""F rows: attempts that crash, hang, shout or hold everything up. They train nothing, so that each takes seconds."""

import random
import sys
import time
from pathlib import Path

import psutil
import pytest

from job_workers import JobBench
from tunesmith.record.jobs import ENDS, JobStateError, change_job

FAKE = str(Path(__file__).parents[1] / "fake_attempt.py")
#: Leases that no worker loses, however busy the machine is; and those that end while a test looks.
CALM = {"lease_seconds": 120.0, "silence_seconds": 100.0, "beat_seconds": 0.3}
QUICK = {"lease_seconds": 4.0, "silence_seconds": 2.5, "beat_seconds": 0.3}


@pytest.fixture
def bench(home, database_url, tmp_path):
    bench = JobBench(home, database_url, tmp_path / "no-base")
    yield bench
    bench.close()


def queued(bench):
    """A job whose files were looked at."""
    job = bench.submit()
    with bench.database.write() as connection:
        return change_job(connection, job.id, state="queued")


def start(bench, mode, **settings):
    return bench.start_worker(attempt=[sys.executable, FAKE, mode], **{**CALM, **settings})


def children(worker):
    return psutil.Process(worker.pid).children(recursive=True)


def wait_alone(bench, worker, seconds=60.0):
    bench.wait(lambda: not children(worker), "something of the attempt lives on", seconds)


def wait_running(bench, worker, job):
    bench.wait(lambda: bench.job(job.id).state == "running" and len(children(worker)) == 2, "it doesn't run")


@pytest.mark.parametrize("workers, count", [(6, 40), pytest.param(16, 200, marks=pytest.mark.soak)])
def test_f09_each_job_runs_once(bench, workers, count):
    asked = [queued(bench) for _ in range(count)]
    for number in range(workers):
        start(bench, "done", devices=[f"cpu:{number}"])
    for job in asked:
        assert bench.wait_over(job.id).state == "succeeded", bench.logs()
    for job in asked:
        assert bench.job(job.id).fence == 2  # one claim, one end
        assert [text for text in bench.messages(job.id) if text.startswith("done by")] == ["done by 1"]


def test_f25_a_poison_job_fails_and_the_queue_moves_on(bench):
    poison, good = queued(bench), bench.submit()
    worker = start(bench, "crash")
    failed = bench.wait_over(poison.id)
    assert (failed.state, failed.error["code"]) == ("failed", "attempts_failed")
    told = bench.messages(poison.id)
    assert [text for text in told if "trying again" in text] == [
        f"An attempt ended unexpectedly; trying again in {seconds} s" for seconds in (2, 10)
    ]
    assert len(list((bench.home.jobs / poison.id).glob("attempt-*.log"))) == 3
    assert bench.wait_over(good.id).is_over
    assert worker.poll() is None


def test_f08_an_attempt_that_ignores_the_stop_is_killed(bench):
    job = queued(bench)
    worker = start(bench, "deaf", stop_seconds=1.0)
    wait_running(bench, worker, job)
    family = children(worker)
    worker.terminate()
    assert worker.wait(timeout=60) == 0
    assert not [one for one in family if one.is_running()]
    assert (bench.job(job.id).state, bench.job(job.id).attempts) == ("queued", 0)


def test_f08_what_was_saved_stays_though_its_process_hangs(bench):
    job = queued(bench)
    worker = start(bench, "hang", end_seconds=1.0)
    assert bench.wait_over(job.id).state == "succeeded"
    wait_alone(bench, worker)
    assert bench.job(job.id).state == "succeeded"


def test_f31_a_noisy_attempt_ends_and_its_log_is_short(bench):
    job = queued(bench)
    start(bench, "noise", log_bytes=100_000)
    assert bench.wait_over(job.id).state == "succeeded"
    (log,) = (bench.home.jobs / job.id).glob("attempt-*.log")
    bench.wait(lambda: b"left out" in log.read_bytes(), "the log has no end")
    text = log.read_bytes()
    assert len(text) < 300_000 and text.endswith(b"the end\n")


def test_f35_a_step_that_holds_everything_up_is_not_taken_for_dead(bench, monkeypatch):
    # Held for longer than a lease, and seconds between all of them, as a busy machine is late.
    leases = {"lease_seconds": 8.0, "silence_seconds": 6.0}
    bench._environment["HOLD_SECONDS"] = str(int(2 * leases["lease_seconds"]))
    job = queued(bench)
    start(bench, "hold", **leases)
    start(bench, "hold", devices=["cpu:another"], **leases)
    assert bench.wait_over(job.id).state == "succeeded"
    assert bench.job(job.id).fence == 2


def test_f19_an_attempt_without_memory_fails_as_such(bench):
    job = queued(bench)
    worker = start(bench, "memory")
    failed = bench.wait_over(job.id)
    assert (failed.state, failed.error["code"], failed.attempts) == ("failed", "out_of_memory", 3)
    assert worker.poll() is None


@pytest.mark.parametrize("count", [10, pytest.param(200, marks=pytest.mark.soak)])
def test_f07_cancelled_or_succeeded_never_both(bench, count):
    chance = random.Random(count)
    worker = start(bench, "done")
    for _ in range(count):
        job = bench.submit()
        time.sleep(chance.uniform(0, 2.0))
        try:
            bench.queue.cancel(job.id)
        except JobStateError as refused:
            assert refused.state == "succeeded"
        wanted = bench.job(job.id).state
        assert wanted in ENDS
        wait_alone(bench, worker)
        time.sleep(0.3)
        told = bench.messages(job.id)
        assert bench.job(job.id).state == wanted
        assert ("The job has been cancelled" in told) == (wanted == "cancelled")
        assert any(text.startswith("done by") for text in told) == (wanted == "succeeded")


def test_f07_the_processes_of_a_cancelled_job_are_gone_soon(bench):
    job = queued(bench)
    worker = start(bench, "deaf", **QUICK)
    wait_running(bench, worker, job)
    assert bench.queue.cancel(job.id).state == "cancelled"
    wait_alone(bench, worker, 10.0)


def test_b24_pause_and_resume(bench):
    job = queued(bench)
    with pytest.raises(JobStateError):
        bench.queue.pause(job.id)
    worker = start(bench, "wait")
    wait_running(bench, worker, job)
    with pytest.raises(JobStateError):
        bench.queue.resume(job.id)
    time.sleep(1)
    assert bench.queue.pause(job.id).state == "pausing"
    bench.wait(lambda: bench.job(job.id).state == "paused", "it doesn't pause")
    wait_alone(bench, worker)
    assert bench.queue.resume(job.id).state == "queued"
    bench.wait(lambda: bench.job(job.id).state == "running", "it doesn't go on")


def test_two_workers_of_one_machine_never_share_a_device(bench):
    asked = [queued(bench) for _ in range(3)]
    workers = [start(bench, "wait") for _ in range(2)]
    bench.wait(lambda: any(len(children(worker)) == 2 for worker in workers), "nothing runs")
    time.sleep(2)
    states = [bench.job(job.id).state for job in asked]
    assert sorted(states) == ["queued", "queued", "running"]


def test_f10_no_worker_dies_of_a_locked_record(bench):
    job = queued(bench)
    # Its beats and its claims are refused several times while the record is locked.
    worker = start(bench, "done", busy_seconds=0.5, **QUICK)
    bench.wait(lambda: children(worker) or bench.job(job.id).is_over, "the worker doesn't begin")
    second = queued(bench)
    with bench.database.write():
        time.sleep(6)
    assert bench.wait_over(job.id).state == bench.wait_over(second.id).state == "succeeded"
    assert worker.poll() is None
    assert "not now: the record: The record is busy" in bench.logs()
