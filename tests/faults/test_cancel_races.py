"""F07 over HTTP: a job is cancelled at a random moment of its life. Attempts train nothing: each takes a second.

On SQLite alone: `test_attempt_faults.py` has the same race in the record on both databases.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

import openai
import psutil
import pytest

from job_api import ROWS, upload
from job_workers import JobBench
from server_process import running_server

FAKE = str(Path(__file__).parents[1] / "fake_attempt.py")
ENDS = ("succeeded", "cancelled")


@pytest.mark.parametrize("count", [4, pytest.param(200, marks=pytest.mark.soak)])
def test_f07_a_cancelled_job_never_succeeds_over_http(home, tiny_folder, tmp_path, monkeypatch, count):
    url = f"sqlite:///{home.root / 'record.db'}"
    monkeypatch.setenv("TUNESMITH_DATABASE_URL", url)
    base = tiny_folder("smollm2")
    bench = JobBench(home, url, base)
    try:
        worker = bench.start_worker(attempt=[sys.executable, FAKE, "done"], beat_seconds=0.3)
        with running_server(tmp_path / "server", home.root, models=[str(base)]) as server:
            client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
            race(client, bench, worker, base.name, random.Random(count), count)
    finally:
        bench.close()


def race(client, bench, worker, model, chance, count):
    file = upload(client, ROWS)
    jobs = client.fine_tuning.jobs
    for number in range(count):
        job = jobs.create(model=model, training_file=file)
        if number:
            time.sleep(chance.uniform(0, 2.5))
        else:  # a few random moments may all be too early: once, what is over is cancelled
            bench.wait_over(job.id)
        try:
            assert jobs.cancel(job.id).status == "cancelled"
        except openai.BadRequestError as refused:
            assert refused.code == "job_state"
        end = jobs.retrieve(job.id).status
        assert end in ENDS
        alone = psutil.Process(worker.pid)
        bench.wait(lambda alone=alone: not alone.children(recursive=True), "something of the attempt lives on", 60)
        time.sleep(0.3)
        told = [event.message for event in jobs.list_events(job.id, limit=100)]
        assert jobs.retrieve(job.id).status == end
        assert ("The job has been cancelled" in told) == (end == "cancelled")
        assert any(text.startswith("done by") for text in told) == (end == "succeeded")
