"""Looks at the files of the jobs that wait for it, one after the other, in a process of its own under a guard.

    python -m tunesmith.runs.validate --owner ...

It takes jobs in the name of its worker, whose beats are its own.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError, StorageError
from tunesmith.record.database import Database
from tunesmith.record.home import Home
from tunesmith.record.job_events import add_events
from tunesmith.record.job_leases import StaleAttempt, claim, fenced
from tunesmith.record.jobs import Job, move_job
from tunesmith.record.store import Store
from tunesmith.runs import job_words
from tunesmith.runs.exit_codes import DONE
from tunesmith.runs.guard import end_with_guard
from tunesmith.runs.job_validation import JobFile, check_file, resolved

_log = logging.getLogger(__name__)

#: Content that no attempt will find whole.
_LOST = frozenset({"missing_content", "damaged_content"})


def validate_job(job: Job, database: Database, store: Store) -> None:
    """Look at the files of a job that was taken for it, and queue the job or let it fail.

    Raises:
        StorageError: the record or the store can't be used.
    """
    method = str(job.method.get("type", "supervised"))
    try:
        with tempfile.TemporaryDirectory(prefix="tunesmith-") as folder:
            examples, notes = _check_files(job, method, store, Path(folder))
    except DataError as error:
        _end(database, job, error)
        return
    numbers = resolved(job.hyperparameters, examples)
    with database.write() as connection:
        job = fenced(connection, job.id, job.fence)
        told = [job_words.note(note, "warning") for note in notes]
        add_events(connection, job.id, [*told, job_words.validated()])
        move_job(
            connection,
            job,
            "queued",
            "queued",
            hyperparameters=numbers,
            method=_shown(job, method, numbers),
            attempts=0,
        )


def _check_files(job: Job, method: str, store: Store, folder: Path) -> tuple[int, tuple[str, ...]]:
    """Return how many examples there are to learn from, and what the job's user should know.

    Raises:
        DataError: a file can't be used.
        StorageError: the store can't be read.
    """
    training = JobFile(job.training_file, folder / "training.jsonl", "training_file")
    _fetch(store, job.training_sha256, training)
    checked = check_file(training, method)
    notes = checked.notes
    if job.validation_sha256 is not None and job.validation_file is not None:
        validation = JobFile(job.validation_file, folder / "validation.jsonl", "validation_file")
        _fetch(store, job.validation_sha256, validation)
        notes += check_file(validation, method).notes
    return checked.examples, notes


def _fetch(store: Store, sha256: str, file: JobFile) -> None:
    """Copy a file's content here; it is hashed on its way.

    Raises:
        DataError: it is lost, or isn't what was uploaded.
        StorageError: the store can't be read.
    """
    try:
        store.fetch(sha256, file.path)
    except StorageError as error:
        if error.code not in _LOST:
            raise
        raise DataError(
            f"The content of {file.id} is lost or has changed since it was uploaded.",
            fix="Upload the file again.",
            code=error.code,
            param=file.param,
        ) from error


def _shown(job: Job, method: str, numbers: dict[str, Any]) -> dict[str, Any]:
    """Return the method as replies show it, with numbers in place of `auto`."""
    settings = dict(job.method.get(method) or {})
    return {**job.method, method: {**settings, "hyperparameters": {**settings.get("hyperparameters", {}), **numbers}}}


def _end(database: Database, job: Job, error: DataError) -> None:
    facts = {"code": error.code, "message": "\n".join([error.message, *error.problems]), "param": error.param}
    with database.write() as connection:
        job = fenced(connection, job.id, job.fence)
        add_events(connection, job.id, [job_words.failed(error.message)])
        move_job(connection, job, "failed", "failed", error=facts)


def main() -> int:
    """Look at files until no job waits for it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--owner", required=True)
    asked = parser.parse_args()
    end_with_guard()
    home = Home.from_environment()
    database, store = Database.from_environment(home), Store.from_environment(home)
    while True:
        with database.write() as connection:
            job = claim(connection, "validating", asked.owner, int(time.time()))
        if job is None:
            return DONE
        try:
            validate_job(job, database, store)
        except StaleAttempt:
            _log.info("%s was ended meanwhile", job.id)


if __name__ == "__main__":
    sys.exit(main())
