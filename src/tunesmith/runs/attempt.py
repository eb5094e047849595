"""One attempt at a job, in a process of its own under a guard.

    python -m tunesmith.runs.attempt --job ftjob-... --fence 3

It works in the folders of the job, so the next attempt goes on where it ended. Its exit code tells the worker how it
ended; what users need to know stands in the record by then.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from pathlib import Path

from sqlalchemy import select

from tunesmith.errors import RunInterrupted, StorageError, TunesmithError
from tunesmith.models.resolve import resolve_start
from tunesmith.models.size import model_size
from tunesmith.models.versions import ModelVersion, delete_version, find_version
from tunesmith.record.atomic import remove_folder
from tunesmith.record.database import Database
from tunesmith.record.home import Home
from tunesmith.record.job_events import add_events
from tunesmith.record.job_leases import StaleAttempt
from tunesmith.record.jobs import Job, change_job, get_job, move_job
from tunesmith.record.store import Store
from tunesmith.record.tables import projects
from tunesmith.runs import job_words
from tunesmith.runs.attempt_record import AttemptRecord, JobObserver
from tunesmith.runs.execute import resume, start
from tunesmith.runs.exit_codes import CRASHED, DONE, INTERRUPTED, OUT_OF_MEMORY, STALE
from tunesmith.runs.folder import JobOrder, RunFolder
from tunesmith.runs.guard import end_with_guard
from tunesmith.runs.job_publishing import JobSnapshots, publish
from tunesmith.runs.job_spec import job_spec, with_multiplied_rate
from tunesmith.runs.run_lock import lock_job
from tunesmith.runs.wandb_run import WandbRun
from tunesmith.specs.tune import TuneSpec
from tunesmith.train.memory import is_out_of_memory
from tunesmith.train.settings import usual_rate

_log = logging.getLogger(__name__)

#: Refusals of the storage that pass; a later attempt may have more luck.
_PASSING = frozenset({"busy", "unavailable", "uncertain"})


class Attempt:
    """One attempt.

    Args:
        home: where runs and models are kept.
        database: the record.
        store: the files' content.
        job_id: what to work on.
        fence: the number of the attempt.
    """

    def __init__(self, home: Home, database: Database, store: Store, job_id: str, fence: int) -> None:
        self._home = home
        self._store = store
        self._database = database
        self._job_id = job_id
        self._record = AttemptRecord(database, job_id, fence, on_stale=lambda: os._exit(STALE))
        self._run = RunFolder(home.runs / job_id)
        self._files = home.jobs / job_id

    def work(self) -> int:
        """Work to the end, and return the exit code."""
        lock_job(self._files)
        try:
            with self._record.write() as (connection, job):
                if job.started_at is None:
                    change_job(connection, job.id, started_at=int(time.time()))
                    add_events(connection, job.id, [job_words.started()])
            version = self._train(job)
            return self._end_well(version)
        except RunInterrupted:
            with self._record.write():
                return INTERRUPTED
        except StaleAttempt:
            return STALE
        except TunesmithError as error:
            if isinstance(error, StorageError) and error.code in _PASSING:
                raise
            return self._end_badly(error)
        finally:
            self._record.close()

    def _train(self, job: Job) -> ModelVersion:
        """Start the job's run, or go on with it; return its result."""
        config = {"model": job.model, "seed": job.seed, **(job.hyperparameters or {})}
        passing_on = [
            WandbRun(one["wandb"], job.id, config, self._files, self._tell_trouble) for one in job.integrations or ()
        ]
        try:
            return self._trained(job, JobObserver(self._record, self._run, passing_on))
        finally:
            for one in passing_on:
                one.end()

    def _tell_trouble(self, text: str) -> None:
        self._record.tell(job_words.note(text, "warning"))

    def _trained(self, job: Job, observer: JobObserver) -> ModelVersion:
        snapshots = JobSnapshots(self._record, observer, self._home)
        if (self._run.data / "report.json").exists():
            view = self._run.view()
            if view.state == "succeeded" and view.model is not None:
                return find_version(view.model, self._home)
            version = resume(job.id, self._home, observer, snapshots=snapshots).version
        else:
            if self._run.path.exists():
                # The attempt before was cut off while it made the folder.
                remove_folder(self._run.path)
            order = JobOrder(job.id, self._organization(job))
            spec = self._spec(job)
            version = start(spec, self._home, observer, order=order, snapshots=snapshots).version
        observer.tell_open()
        return version

    def _spec(self, job: Job) -> TuneSpec:
        training = self._fetched(job.training_sha256, "training.jsonl")
        validation = self._fetched(job.validation_sha256, "validation.jsonl") if job.validation_sha256 else None
        spec = job_spec(job, training, validation)
        multiplier = (job.hyperparameters or {}).get("learning_rate_multiplier")
        size = model_size(resolve_start(spec.base, self._home).base.folder)
        return with_multiplied_rate(spec, multiplier, usual_rate(spec, size.hidden))

    def _fetched(self, sha256: str, name: str) -> Path:
        path = self._files / name
        if not path.exists():
            self._store.fetch(sha256, path)
        return path

    def _organization(self, job: Job) -> str:
        with self._database.read() as connection:
            found = connection.scalar(select(projects.c.organization_id).where(projects.c.id == job.project_id))
        return str(found or "local").removeprefix("org-")

    def _end_well(self, version: ModelVersion) -> int:
        try:
            publish(self._record, self._run, version, self._home, self._store)
        except StaleAttempt:
            with self._database.read() as connection:
                is_cancelled = get_job(connection, self._job_id).state == "cancelled"
            if is_cancelled:
                delete_version(version)
            return STALE
        return DONE

    def _end_badly(self, error: TunesmithError) -> int:
        """Tell why there will be no result. Where something lies is nothing for the API's users."""
        _log.error("the job failed: %s", error)
        more = "".join(f"\n{problem}" for problem in error.problems)
        facts = {"code": error.code or "training_failed", "message": error.message + more, "param": error.param}
        with self._record.write() as (connection, job):
            add_events(connection, job.id, [job_words.failed(error.message)])
            move_job(connection, job, "failed", "failed", error=facts)
        return DONE


def main() -> int:
    """Work as the arguments say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--job", required=True)
    parser.add_argument("--fence", type=int, required=True)
    asked = parser.parse_args()
    end_with_guard()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    home = Home.from_environment()
    database = Database.from_environment(home)
    try:
        return Attempt(home, database, Store.from_environment(home), asked.job, asked.fence).work()
    except Exception as error:
        _log.exception("the attempt crashed")
        return OUT_OF_MEMORY if is_out_of_memory(error) else CRASHED


if __name__ == "__main__":
    sys.exit(main())
