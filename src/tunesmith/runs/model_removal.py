"""Removal of models: first from the record, so that nobody finds them any more, then from the disk.

A process that dies in between leaves files that no list names; `sweep_models` removes them later.
"""

from __future__ import annotations

import logging

from tunesmith.errors import ModelError, StorageError
from tunesmith.models.versions import ModelVersion, delete_version, list_versions
from tunesmith.record.database import Database
from tunesmith.record.home import Home
from tunesmith.record.job_models import forget_model, forgotten_models, is_start_of_job

_log = logging.getLogger(__name__)

#: How many models a sweep asks the record about at once.
_BATCH = 200


def remove_model(version: ModelVersion, home: Home, database: Database) -> bool:
    """Remove a model, durably; return whether it was there. Who has it in memory finishes its answers.

    Raises:
        ModelError: a job that isn't over yet starts from it, or a model was tuned from it and needs its weights
            (`model_in_use`).
        StorageError: the record can't be written, or the files of one that was tuned by hand can't be removed.
    """
    is_of_job = version.made.organization is not None
    if any(other.made.base == str(version.folder) for other in list_versions(home)):
        raise _in_use(version, "A model was tuned from this one and needs its weights.", "Delete that one first.")
    with database.write() as connection:
        if is_start_of_job(connection, version.name):
            what = "A fine-tuning job that isn't over yet starts from this model."
            raise _in_use(version, what, "Wait for the job, or cancel it.")
        was_there = forget_model(connection, version.name) or not is_of_job
    if not was_there:
        return False
    try:
        was_there = _delete_files(version) or is_of_job
    except StorageError as error:
        if not is_of_job:
            raise
        # Nobody can find it any more, and a sweep tries again.
        _log.warning("the files of %s can't be removed now: %s", version.name, error)
    return was_there


def sweep_models(home: Home, database: Database) -> int:
    """Remove the files of jobs' models that are on no list and can't come on one; return how many there were.

    Raises:
        StorageError: the record can't be read, or files can't be removed.
    """
    made = [version for version in list_versions(home) if version.made.organization is not None]
    count = 0
    for start in range(0, len(made), _BATCH):
        batch = {version.name: version for version in made[start : start + _BATCH]}
        with database.read() as connection:
            gone = forgotten_models(connection, [(name, version.made.run) for name, version in batch.items()])
        count += sum(_delete_files(batch[name]) for name in sorted(gone))
    return count


def _in_use(version: ModelVersion, what: str, fix: str) -> ModelError:
    # Neither job nor model is named: they may be another project's.
    return ModelError(what, where=version.name, fix=fix, code="model_in_use", param="model")


def _delete_files(version: ModelVersion) -> bool:
    """Remove a model's folder; return whether it was there: somebody else may remove it at the same moment."""
    try:
        delete_version(version)
    except StorageError as error:
        if error.code != "no_such_folder":
            raise
        return False
    return True
