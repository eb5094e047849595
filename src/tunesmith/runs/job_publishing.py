"""What a job's users see of a run's weights and figures: checkpoints, the model, the file of its steps."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from tunesmith.errors import ModelError
from tunesmith.models.versions import ModelVersion, delete_version, find_version
from tunesmith.record.files import Files, NewFile
from tunesmith.record.home import Home
from tunesmith.record.job_events import JobCheckpoint, add_checkpoint, add_events, all_checkpoints, remove_checkpoint
from tunesmith.record.jobs import Job, move_job
from tunesmith.record.store import Store
from tunesmith.runs import job_words
from tunesmith.runs.attempt_record import AttemptRecord, JobObserver, step_metrics, whole_epochs
from tunesmith.runs.execute import Snapshots
from tunesmith.runs.folder import RunFolder

#: Checkpoints that stay, the result among them.
KEPT_CHECKPOINTS = 3
_RESULT_FILE, _RESULT_PURPOSE = "step_metrics.csv", "fine-tune-results"
_COLUMNS = {
    "step": "step",
    "train_loss": "train_loss",
    "train_accuracy": "train_mean_token_accuracy",
    "valid_loss": "valid_loss",
    "valid_mean_token_accuracy": "valid_mean_token_accuracy",
    "full_valid_loss": "full_valid_loss",
    "full_valid_mean_token_accuracy": "full_valid_mean_token_accuracy",
}


class JobSnapshots(Snapshots):
    """Lists weights at the end of each epoch, and where a job is paused, as the job's checkpoints."""

    at_epoch_ends = True

    def __init__(self, record: AttemptRecord, observer: JobObserver, home: Home) -> None:
        self._record = record
        self._observer = observer
        self._home = home

    def wants_at_stop(self) -> bool:
        """See `Snapshots`: whether the job is being paused."""
        with self._record.write() as (_, job):
            return job.state == "pausing"

    def taken(self, step: int, version: ModelVersion) -> None:
        """See `Snapshots`."""
        self._observer.tell_open()
        with self._record.write() as (connection, job):
            listed = all_checkpoints(connection, job.id)
            if any(one.model == version.name for one in listed):
                return
            metrics = dict(self._observer.metrics)
            metrics.pop("total_steps", None)
            add_checkpoint(connection, job.id, job.project_id, step, version.name, version.folder.name, metrics)
            old = listed[: max(0, len(listed) + 1 - KEPT_CHECKPOINTS)]
            for one in old:
                remove_checkpoint(connection, one)
        _delete_all(old, self._home)


def publish(record: AttemptRecord, folder: RunFolder, version: ModelVersion, home: Home, store: Store) -> None:
    """End a job well: its model, its checkpoints, its file and its last events appear in one moment.

    Raises:
        StaleAttempt: the job was taken from this attempt, or ended by its user.
        StorageError: the record or the store can't be written.
    """
    train = version.made.summary["train"]
    optimisation = folder.spec().optimisation
    rows = version.made.summary["data"]["train"]
    ends = whole_epochs(rows, int(optimisation.batch_size), float(optimisation.epochs))
    steps = step_metrics(folder, train["steps"], ends)
    blob = store.add(_csv(steps).encode())
    with record.write() as (connection, job):
        old = _with_result_checkpoint(connection, job, version, steps[-1] if steps else {"step": train["steps"]})
        new = NewFile(job.project_id, _RESULT_FILE, _RESULT_PURPOSE)
        file = Files(record.database, store).add(connection, new, blob)
        kept = all_checkpoints(connection, job.id)[:-1]
        told = [job_words.checkpoint(one.step, one.model) for one in kept]
        add_events(connection, job.id, [*told, job_words.new_model(version.name), job_words.completed()])
        move_job(
            connection,
            job,
            "succeeded",
            "finished",
            fine_tuned_model=version.name,
            trained_tokens=train["tokens"],
            result_files=[file.id],
        )
    _delete_all(old, home)


def _with_result_checkpoint(
    connection: Connection, job: Job, version: ModelVersion, metrics: Mapping[str, Any]
) -> list[JobCheckpoint]:
    """Add the result as the last checkpoint, and return those that it takes off the list."""
    step = int(metrics["step"])
    listed = all_checkpoints(connection, job.id)
    old = [one for one in listed if one.step >= step]
    others = [one for one in listed if one.step < step]
    old += others[: max(0, len(others) + 1 - KEPT_CHECKPOINTS)]
    for one in old:
        remove_checkpoint(connection, one)
    shown = {name: value for name, value in metrics.items() if name != "total_steps"}
    add_checkpoint(connection, job.id, job.project_id, step, version.name, version.folder.name, shown)
    return old


def _delete_all(checkpoints: Sequence[JobCheckpoint], home: Home) -> None:
    """Delete the weights of checkpoints that aren't listed any more."""
    for one in checkpoints:
        try:
            delete_version(find_version(one.model, home))
        except ModelError as error:
            if error.code != "model_not_found":
                raise


def _csv(steps: Sequence[Mapping[str, Any]]) -> str:
    """Return the figures of the steps as the file that a job's users download."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for metrics in steps:
        writer.writerow([metrics.get(name, "") for name in _COLUMNS.values()])
    return text.getvalue()
