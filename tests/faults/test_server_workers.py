"""The worker of a server: it is there, is replaced, and never outlives it. How it stops: `test_polite_stop.py`."""

import signal

import psutil
import pytest

from job_workers import JobBench
from server_process import running_server


@pytest.fixture
def bench(home, database_url, tiny_folder, monkeypatch):
    monkeypatch.setenv("TUNESMITH_DATABASE_URL", database_url)
    bench = JobBench(home, database_url, tiny_folder("smollm2"))
    yield bench
    bench.close()


def worker_of(server):
    """The server's worker, None while there is none."""
    children = psutil.Process(server.process.pid).children()
    alive = [one for one in children if one.status() != psutil.STATUS_ZOMBIE]
    found = [one for one in alive if "worker" in one.cmdline()]
    return found[0] if found else None


def test_f03_the_worker_ends_with_a_killed_server_and_a_killed_worker_is_replaced(bench, tmp_path):
    with running_server(tmp_path / "server", bench.home.root, workers=1) as server:
        first = bench.wait(lambda: worker_of(server), "no worker starts")
        first.kill()
        bench.wait(lambda: (now := worker_of(server)) and now.pid != first.pid, "it isn't replaced", 30)
        job = bench.submit()
        bench.wait_step(job.id, 2)
        family = psutil.Process(server.process.pid).children(recursive=True)
        server.stop(signal.SIGKILL)
        bench.wait(lambda: not [one for one in family if one.is_running()], "something lives on", 30)
