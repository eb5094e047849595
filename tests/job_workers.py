"""What the tests of jobs share: a record with a project, jobs on tiny models, workers as real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import select

from tunesmith.models.versions import find_version
from tunesmith.record.access import DEFAULT_PROJECT, ORGANIZATION
from tunesmith.record.blobs import name_blob
from tunesmith.record.database import Database
from tunesmith.record.home import Home
from tunesmith.record.job_events import JobEvent, list_events
from tunesmith.record.job_leases import leases
from tunesmith.record.jobs import Job, NewJob, get_job
from tunesmith.record.pages import Page
from tunesmith.record.store import Store
from tunesmith.record.tables import projects
from tunesmith.runs.process_identity import ProcessIdentity
from tunesmith.runs.queue import JobQueue

#: The machine may be busy with other tests.
PATIENCE_SECONDS = 240.0

ROWS = [
    {"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"{n} " * (n % 5 + 1)}]}
    for n in range(40)
]


class JobBench:
    """A home, a record and jobs on a tiny base. `start_worker` starts real workers, which `close` ends."""

    def __init__(self, home: Home, database_url: str, base: Path) -> None:
        self.home = home
        home.check_writable()
        self.base = base
        self.database = Database(database_url)
        self.database.migrate()
        self.store = Store.from_environment(home)
        self.queue = JobQueue(self.database)
        self.workers: list[subprocess.Popen[bytes]] = []
        self._environment = {**os.environ, "TUNESMITH_DATABASE_URL": database_url, "OMP_NUM_THREADS": "1"}
        with self.database.write() as connection:
            if connection.scalar(select(projects.c.id).where(projects.c.id == DEFAULT_PROJECT)) is None:
                connection.execute(
                    projects.insert().values(
                        id=DEFAULT_PROJECT, created_at=0, name="default", organization_id=ORGANIZATION
                    )
                )

    def submit(self, rows: list[dict[str, Any]] = ROWS, **changes: Any) -> Job:
        """Submit a job of a few dozen steps."""
        content = "\n".join(json.dumps(row) for row in rows).encode()
        blob = self.store.add(content)
        with self.database.write() as connection:
            name_blob(connection, self.store, blob)
        values: dict[str, Any] = {
            "project_id": DEFAULT_PROJECT,
            "model": "tiny",
            "base": str(self.base),
            "seed": 7,
            "method": {"type": "supervised", "supervised": {"hyperparameters": {}}},
            "hyperparameters": {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": "auto"},
            "spec": {"adapter": {"rank": 4, "dropout": 0.1}, "evaluation": {"forgetting_rows": 0}},
            "training_file": "file-training",
            "training_sha256": blob.sha256,
            "suffix": "numbers",
        }
        return self.queue.submit(NewJob(**{**values, **changes}))

    def start_worker(self, **settings: Any) -> subprocess.Popen[bytes]:
        """Start a worker; `settings` are those of `one_worker.py`."""
        program = str(Path(__file__).with_name("one_worker.py"))
        log = (self.home.root / f"worker-{len(self.workers)}.log").open("wb")
        worker = subprocess.Popen(
            [sys.executable, program, json.dumps(settings)],
            env=self._environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        log.close()
        self.workers.append(worker)
        return worker

    def job(self, job_id: str) -> Job:
        with self.database.read() as connection:
            return get_job(connection, job_id)

    def events(self, job_id: str) -> list[JobEvent]:
        with self.database.read() as connection:
            return list(list_events(connection, job_id, Page(10_000, is_descending=False)).items)

    def messages(self, job_id: str) -> list[str]:
        return [event.message for event in self.events(job_id)]

    def steps(self, job_id: str) -> list[int]:
        """The steps that the job's events tell of, in order."""
        return [event.data["step"] for event in self.events(job_id) if event.type == "metrics" and event.data]

    def weights(self, job_id: str) -> bytes:
        """The bytes of the job's model."""
        model = self.job(job_id).fine_tuned_model
        assert model is not None
        return (find_version(model, self.home).folder / "adapter_model.safetensors").read_bytes()

    def wait(self, is_so: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS) -> Any:
        """Wait until something is so, and return it."""
        give_up = time.monotonic() + seconds
        while not (found := is_so()):
            assert time.monotonic() < give_up, f"{what}\n{self.logs()}"
            time.sleep(0.02)
        return found

    def wait_over(self, job_id: str) -> Job:
        self.wait(lambda: self.job(job_id).is_over, f"{job_id} isn't over")
        return self.job(job_id)

    def wait_step(self, job_id: str, step: int = 1) -> None:
        """Wait until the run has taken a step."""
        metrics = self.home.runs / job_id / "metrics.jsonl"

        def is_taken() -> bool:
            return metrics.exists() and f'"step":{step},' in metrics.read_text(encoding="utf-8").replace(" ", "")

        self.wait(is_taken, f"{job_id} hasn't come to step {step}")

    def holder(self, job_id: str) -> ProcessIdentity | None:
        """The attempt that has a job's folder locked, if it lives."""
        path = self.home.jobs / job_id / "lock"
        found = ProcessIdentity.parse(path.read_text()) if path.exists() else None
        return None if found is None or found.is_certainly_gone() else found

    def logs(self) -> str:
        files = [*self.home.root.glob("worker-*.log"), *self.home.jobs.glob("*/*log")]
        return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-3000:]}" for file in files)

    def held(self) -> int:
        with self.database.read() as connection:
            return len(leases(connection))

    def close(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGCONT)
                worker.kill()
                worker.wait()
        self.database.close()
