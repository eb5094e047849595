"""Models as jobs leave them, without the training: registered, and on their job's list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from serving_models import register_tuned
from tunesmith.models.versions import ModelVersion
from tunesmith.record.access import DEFAULT_PROJECT
from tunesmith.record.blobs import name_blob
from tunesmith.record.database import Database
from tunesmith.record.home import Home
from tunesmith.record.job_events import add_checkpoint
from tunesmith.record.jobs import Job, NewJob, change_job, create_job
from tunesmith.record.store import Store


def add_job(database: Database, home: Home, base: str, *, project_id: str = DEFAULT_PROJECT, **changes: Any) -> Job:
    """A job that has succeeded, unless `changes` of its columns say otherwise."""
    store = Store.from_environment(home)
    blob = store.add(b"rows")
    new = NewJob(
        project_id=project_id,
        model=base,
        base=base,
        seed=1,
        method={"type": "supervised", "supervised": {"hyperparameters": {}}},
        spec={},
        training_file="file-training",
        training_sha256=blob.sha256,
    )
    with database.write() as connection:
        name_blob(connection, store, blob)
        return change_job(connection, create_job(connection, new).id, **{"state": "succeeded", **changes})


def add_model(
    database: Database, home: Home, base: Path, *, project_id: str = DEFAULT_PROJECT, step: int = 10, **changes: Any
) -> ModelVersion:
    """The model of a job that has succeeded."""
    job = add_job(database, home, str(base), project_id=project_id)
    version = unlisted_model(home, base, job, **changes)
    with database.write() as connection:
        add_checkpoint(connection, job.id, project_id, step, version.name, version.folder.name, {"step": step})
        change_job(connection, job.id, fine_tuned_model=version.name)
    return version


def unlisted_model(home: Home, base: Path, job: Job, *, seed: int = 0, **changes: Any) -> ModelVersion:
    """Weights of a job that are in the registry and on no list."""
    return register_tuned(base, home, label="numbers", seed=seed, run=job.id, organization="local", **changes)
