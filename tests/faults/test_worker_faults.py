"""F rows: workers that die, freeze, are cut off or told to stop; what is promised holds all the same."""

import os
import random
import signal
import time
from contextlib import suppress

import psutil
import pytest
from sqlalchemy import update

from job_workers import JobBench
from tunesmith.errors import StorageError
from tunesmith.models.versions import list_versions
from tunesmith.record.database import Database
from tunesmith.record.lines import JsonLines
from tunesmith.record.tables import jobs

#: Short leases, in the proportions of the real ones.
QUICK = {"lease_seconds": 4.0, "silence_seconds": 2.5, "beat_seconds": 0.3}
#: Enough steps that a job is still at it when a test, which may be slower than the training, does something to it.
STEPS = 120
LONG = {"n_epochs": STEPS // 10, "batch_size": 4}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny_folder):
    """The weights of the job when nothing happens to it."""
    from tunesmith.record.home import Home

    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_HOME", str(folder))
        bench = JobBench(Home(folder), f"sqlite:///{folder / 'record.db'}", tiny_folder("smollm2"))
        job = bench.submit(hyperparameters=LONG)
        bench.start_worker()
        assert bench.wait_over(job.id).state == "succeeded", bench.logs()
        bench.close()
        return bench.weights(job.id)


@pytest.fixture
def bench(home, database_url, tiny_folder):
    bench = JobBench(home, database_url, tiny_folder("smollm2"))
    yield bench
    bench.close()


def check_result(bench, job, undisturbed, steps=STEPS):
    """No step lost or told twice, the weights those of an undisturbed run (of `STEPS`)."""
    done = bench.wait_over(job.id)
    assert done.state == "succeeded", bench.logs()
    assert bench.steps(job.id) == list(range(1, steps + 1))
    rows = JsonLines(bench.home.runs / job.id / "metrics.jsonl").rows()
    assert [row["step"] for row in rows if row.get("loss") is not None] == list(range(1, steps + 1))
    assert steps != STEPS or bench.weights(job.id) == undisturbed
    assert bench.messages(job.id)[-1] == "The job has successfully completed"
    assert not [event for event in bench.messages(job.id) if "unexpectedly" in event]


def kill_tree(worker):
    """kill -9 a worker and everything that it started, at the same moment."""
    family = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)]
    for one in family:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    worker.wait()


@pytest.mark.parametrize("seed", [1, 2])
def test_f01_a_killed_worker_costs_nothing(bench, undisturbed, seed):
    chance = random.Random(seed)
    job = bench.submit(hyperparameters=LONG)
    for step in sorted(chance.sample(range(1, 27), 2)):
        worker = bench.start_worker(**QUICK)
        bench.wait_step(job.id, step)
        time.sleep(chance.uniform(0, 0.05))
        kill_tree(worker)
    bench.start_worker(**QUICK)
    check_result(bench, job, undisturbed)


def test_f03_all_die_and_a_plain_restart_goes_on_at_once(bench, undisturbed):
    job = bench.submit(hyperparameters=LONG)
    worker = bench.start_worker()
    bench.wait_step(job.id, 12)
    kill_tree(worker)
    # That the process is gone, and not another one with its number, is known at once: the lease isn't over by then.
    bench.start_worker(lease_seconds=3600.0)
    bench.wait(lambda: bench.job(job.id).fence > 4 or bench.job(job.id).is_over, "it isn't taken back")
    check_result(bench, job, undisturbed)


def test_f04_a_polite_stop_keeps_the_work_and_gives_the_job_back(bench, undisturbed):
    job = bench.submit(hyperparameters=LONG)
    worker = bench.start_worker()
    bench.wait_step(job.id, 7)
    worker.terminate()
    started = time.monotonic()
    assert worker.wait(timeout=60) == 0
    assert time.monotonic() - started < 30
    given_back = bench.job(job.id)
    assert (given_back.state, given_back.attempts, bench.held()) == ("queued", 0, 0)
    assert bench.holder(job.id) is None
    bench.start_worker()
    check_result(bench, job, undisturbed)
    assert [one for one in bench.messages(job.id) if "goes on after step" in one]


def test_f05_an_attempt_does_not_outlive_its_worker(bench, undisturbed):
    job = bench.submit(hyperparameters=LONG)
    worker = bench.start_worker(**QUICK)
    bench.wait_step(job.id, 3)
    attempt = bench.holder(job.id)
    worker.kill()
    worker.wait()
    bench.wait(attempt.is_certainly_gone, "the attempt lives on", seconds=10)
    bench.start_worker(**QUICK)
    check_result(bench, job, undisturbed)


def test_f05_an_attempt_does_not_outlive_its_guard(bench, undisturbed):
    job = bench.submit(hyperparameters=LONG)
    bench.start_worker(**QUICK)
    bench.wait_step(job.id, 3)
    attempt = bench.holder(job.id)
    os.kill(os.getpgid(attempt.pid), signal.SIGKILL)
    bench.wait(attempt.is_certainly_gone, "the attempt lives on", seconds=10)
    assert bench.wait_over(job.id).state == "succeeded"
    assert bench.weights(job.id) == undisturbed


def freezes_between_writes(processes, job, database):
    """Suspend processes, unless one of them is writing: nobody else could write until it returns. Say if it did."""
    for one in processes:
        one.suspend()
    try:
        with database.write() as connection:
            connection.execute(update(jobs).where(jobs.c.id == job.id).values(model=job.model))
        return True
    except StorageError:
        for one in processes:
            one.resume()
        return False


@pytest.mark.parametrize("who", ["worker", "worker and attempt"])
def test_f06_a_frozen_worker_that_returns_changes_nothing(bench, undisturbed, database_url, who):
    # Alone, its attempt goes on for as long as the worker's last word counts: it mustn't come to its end by then.
    steps, silence_seconds = (STEPS, 2.5) if who == "worker and attempt" else (1000, 2.0)
    job = bench.submit(hyperparameters=LONG | {"n_epochs": steps // 10})
    frozen = bench.start_worker(**QUICK | {"silence_seconds": silence_seconds})
    bench.wait_step(job.id, 3)
    processes = [psutil.Process(frozen.pid)]
    if who == "worker and attempt":
        processes += processes[0].children(recursive=True)
    database = Database(database_url, busy_seconds=0.5)
    bench.wait(lambda: freezes_between_writes(processes, job, database), "it writes all the time")
    database.close()
    fence = bench.job(job.id).fence
    bench.start_worker(**QUICK)
    bench.wait(lambda: bench.job(job.id).fence > fence + 1, "nobody takes the job")
    for one in processes:
        if one.is_running():
            one.resume()
    check_result(bench, job, undisturbed, steps=steps)
    assert [one.made.run for one in list_versions(bench.home)] == [job.id] * 3


def test_f36_a_worker_that_is_cut_off_ends_its_attempt_first(bench, undisturbed):
    """The record is locked for longer than a lease: no beat gets through."""
    job = bench.submit(hyperparameters=LONG)
    lease_seconds = 10.0  # long after the silence, as a busy machine is late
    bench.start_worker(**QUICK | {"lease_seconds": lease_seconds})
    bench.wait_step(job.id, 3)
    attempt = bench.holder(job.id)
    with bench.database.write():
        started = time.monotonic()
        bench.wait(attempt.is_certainly_gone, "the attempt goes on without a lease", lease_seconds)
        time.sleep(started + lease_seconds + 1 - time.monotonic())
    done = bench.wait_over(job.id)
    assert (done.state, done.error) == ("succeeded", None) and bench.weights(job.id) == undisturbed
    assert not [text for text in bench.messages(job.id) if "unexpectedly" in text]  # it wasn't the job's doing


def test_f23_a_job_keeps_its_content(bench, undisturbed):
    """Nothing that the sweep may do takes a job's content; its file's row never existed here."""
    from tunesmith.record.blobs import free_blobs

    job = bench.submit(hyperparameters=LONG)
    free_blobs(bench.database, bench.store, [job.training_sha256])
    bench.start_worker()
    check_result(bench, job, undisturbed)
