"""What an attempt writes into the record, each time under its fence: steps in passing, all else at once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection

from tunesmith.errors import StorageError
from tunesmith.record.database import Database
from tunesmith.record.events import Event
from tunesmith.record.job_events import NewEvent, add_events
from tunesmith.record.job_leases import StaleAttempt, fenced, note_progress
from tunesmith.record.jobs import Job, change_job
from tunesmith.record.lines import JsonLines
from tunesmith.record.observer import Observer, StepReport
from tunesmith.runs import job_words
from tunesmith.runs.folder import RunFolder

_log = logging.getLogger(__name__)

_FLUSH_SECONDS = 0.5
#: How often the time of the end is estimated anew.
_ESTIMATE_SECONDS = 5


class AttemptRecord:
    """The record as one attempt may write it. Threads share one.

    Args:
        database: the record.
        job_id: whose attempt it is.
        fence: the attempt's number.
        on_stale: called when the attempt may not write any more.
    """

    def __init__(self, database: Database, job_id: str, fence: int, on_stale: Callable[[], object]) -> None:
        self.database = database
        self.job_id = job_id
        self.fence = fence
        self._on_stale = on_stale
        self._waiting: list[NewEvent] = []
        self._changes: dict[str, Any] = {}
        self._step = 0
        self._guard = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._flush_now_and_then, name="attempt record", daemon=True)
        self._thread.start()

    def tell(self, event: NewEvent) -> None:
        """Tell an event soon."""
        with self._guard:
            self._waiting.append(event)

    def note(self, *, step: int = 0, **changes: Any) -> None:
        """Note soon that weights of a step are kept, and columns of the job."""
        with self._guard:
            self._step = max(self._step, step)
            self._changes |= changes

    @contextmanager
    def write(self) -> Iterator[tuple[Connection, Job]]:
        """Yield a connection that may write and the job, after all that was to be told so far.

        Raises:
            StaleAttempt: the attempt may not write any more.
            StorageError: see `Database.write`; what was to be told is told with the next write.
        """
        with self._guard:
            waiting, changes, step = self._waiting, self._changes, self._step
            with self.database.write() as connection:
                job = fenced(connection, self.job_id, self.fence)
                add_events(connection, self.job_id, waiting)
                if changes:
                    change_job(connection, self.job_id, **changes)
                note_progress(connection, job, step)
                yield connection, job
            self._waiting, self._changes = [], {}

    def close(self) -> None:
        """Stop telling in passing."""
        self._ended.set()

    def _flush_now_and_then(self) -> None:
        while not self._ended.wait(_FLUSH_SECONDS):
            if not self._waiting and not self._changes:
                continue
            try:
                with self.write():
                    pass
            except StaleAttempt:
                self._on_stale()
                return
            except StorageError as error:
                # It is told later, or the lease ends and the attempt with it.
                _log.warning("the record can't be written now: %s", error)


class JobObserver(Observer):
    """Turns what a run tells into the events of its job.

    Args:
        record: where to.
        folder: of the run, once it is there.
    """

    def __init__(self, record: AttemptRecord, folder: RunFolder) -> None:
        self._record = record
        self._folder = folder
        self._steps = 0
        self._open: dict[str, Any] | None = None
        self._saved_by_next = 0
        self._estimated_at = 0.0
        #: The figures of the newest step.
        self.metrics: dict[str, Any] = {}

    def event(self, event: Event) -> None:
        """See `Observer`."""
        if event.type == "plan":
            self._steps = int(event.data["steps"])
        elif event.type == "run_resumed":
            self._tell_again()
        elif event.type == "validation":
            self._validated(event.data["validation_loss"])
        elif event.level == "warning" and event.type != "plain_template":
            self._record.tell(job_words.note(event.message, event.level))

    def step(self, report: StepReport) -> None:
        """See `Observer`."""
        # A step after which there is a checkpoint has it by the time of the next step.
        if self._saved_by_next:
            self._record.note(step=self._saved_by_next)
        self._saved_by_next = report.step if report.validates else 0
        self.tell_open()
        self._open = {"step": report.step, "total_steps": report.steps, "train_loss": report.loss}
        if time.monotonic() - self._estimated_at > _ESTIMATE_SECONDS:
            self._estimated_at = time.monotonic()
            self._record.note(estimated_finish=int(time.time() + report.remaining_seconds))
        if not report.validates:
            self.tell_open()

    def tell_open(self) -> None:
        """Tell the step that waited for its validation."""
        if self._open is not None:
            self._record.tell(job_words.step(self._open))
            self.metrics, self._open = self._open, None

    def _validated(self, loss: float) -> None:
        if self._open is not None:
            self._open |= {"valid_loss": loss, "full_valid_loss": loss}
        self.tell_open()

    def _tell_again(self) -> None:
        """Tell of the steps up to the checkpoint that an attempt goes on from; those that are told stay as they are."""
        steps = step_metrics(self._folder, self._steps)
        for metrics in steps:
            self._record.tell(job_words.step(metrics))
        self.metrics = steps[-1] if steps else {}
        self._record.tell(job_words.resumed(len(steps)))


def step_metrics(folder: RunFolder, total_steps: int) -> list[dict[str, Any]]:
    """Return the figures of each step that a run has on file, under the names of the API."""
    found: dict[int, dict[str, Any]] = {}
    for row in JsonLines(folder.metrics_file).rows():
        step = int(row["step"])
        metrics = found.setdefault(step, {"step": step, "total_steps": total_steps})
        if row.get("loss") is not None:
            metrics["train_loss"] = row["loss"]
        if row.get("validation_loss") is not None:
            metrics |= {"valid_loss": row["validation_loss"], "full_valid_loss": row["validation_loss"]}
    return [found[step] for step in sorted(found) if "train_loss" in found[step]]
