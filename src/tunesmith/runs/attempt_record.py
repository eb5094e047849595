"""What an attempt writes into the record, each time under its fence: steps in passing, all else at once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from tunesmith.data.problems import MAX_LISTED
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
from tunesmith.runs.wandb_run import WandbRun
from tunesmith.train.batches import epoch_ends
from tunesmith.train.settings import step_count

_log = logging.getLogger(__name__)

_FLUSH_SECONDS = 0.5
#: How often the time of the end is estimated anew.
_ESTIMATE_SECONDS = 5
#: Findings about rows that aren't learnt, or not to their end; others are advice, which the run's report holds.
_FOUND = frozenset({"cut", "too_long", "nothing_to_learn"})


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
            except Exception as error:
                # This thread must not end without a word; the attempt's next own write meets the same error and fails.
                _log.error("the record can't be written", exc_info=error)


class JobObserver(Observer):
    """Turns what a run tells into the events of its job.

    Args:
        record: where to.
        folder: of the run, once it is there.
        passing_on: where the figures of steps go as well.
    """

    def __init__(self, record: AttemptRecord, folder: RunFolder, passing_on: Sequence[WandbRun] = ()) -> None:
        self._record = record
        self._passing_on = passing_on
        self._folder = folder
        self._steps = 0
        self._epoch_ends: frozenset[int] = frozenset()
        self._open: dict[str, Any] | None = None
        self._saved_by_next = 0
        self._estimated_at = 0.0
        #: The figures of the newest step.
        self.metrics: dict[str, Any] = {}

    def event(self, event: Event) -> None:
        """See `Observer`."""
        if event.type == "plan":
            self._steps = int(event.data["steps"])
            self._epoch_ends = whole_epochs(event.data["rows"], event.data["batch_size"], event.data["epochs"])
        elif event.type == "data_prepared":
            self._tell_of_rows(event.data["report"])
        elif event.type == "run_resumed":
            self._tell_again()
        elif event.type == "validation":
            self._validated(event.data)
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
        if report.accuracy is not None:
            self._open["train_mean_token_accuracy"] = report.accuracy
        if time.monotonic() - self._estimated_at > _ESTIMATE_SECONDS:
            self._estimated_at = time.monotonic()
            self._record.note(estimated_finish=int(time.time() + report.remaining_seconds))
        if not report.validates:
            self.tell_open()

    def tell_open(self) -> None:
        """Tell the step that waited for its validation."""
        if self._open is not None:
            self._record.tell(job_words.step(self._open))
            for one in self._passing_on:
                one.step(self._open)
            self.metrics, self._open = self._open, None

    def _validated(self, figures: Mapping[str, Any]) -> None:
        if self._open is not None:
            self._open |= validation_metrics(figures, is_epoch_end=self._open["step"] in self._epoch_ends)
        self.tell_open()

    def _tell_of_rows(self, report: Mapping[str, Any]) -> None:
        """Tell, at a run's first attempt, which rows aren't learnt as they are."""
        if self._folder.metrics_file.exists() and self._folder.metrics_file.stat().st_size:
            return
        for finding in (one for one in report["findings"] if one["code"] in _FOUND):
            lines = ", ".join(str(place.get("line", place.get("row"))) for place in finding["places"])
            self._record.tell(job_words.note(f"{finding['message']}{f' Lines: {lines}.' if lines else ''}", "warning"))
        dropped = [row for row in report["dropped_rows"] if row["code"] not in _FOUND]
        if dropped:
            listed = "; ".join(_place_and_reason(row) for row in dropped[:MAX_LISTED])
            more = f"; and {len(dropped) - MAX_LISTED} more" if len(dropped) > MAX_LISTED else ""
            self._record.tell(job_words.note(f"{len(dropped)} example(s) aren't learnt: {listed}{more}", "warning"))

    def _tell_again(self) -> None:
        """Tell of the steps up to the checkpoint that an attempt goes on from; those that are told stay as they are."""
        steps = step_metrics(self._folder, self._steps, self._epoch_ends)
        for metrics in steps:
            self._record.tell(job_words.step(metrics))
        self.metrics = steps[-1] if steps else {}
        self._record.tell(job_words.resumed(len(steps)))


def _place_and_reason(row: Mapping[str, Any]) -> str:
    """Return where a row that was left out stands, and why it was; where files lie is nothing for the API's users."""
    file = Path(row["file"])
    return f"{file.name}, line {row.get('line', row.get('row'))} {row['reason'].replace(f'{file.parent}/', '')}"


def step_metrics(folder: RunFolder, total_steps: int, epoch_ends: Collection[int]) -> list[dict[str, Any]]:
    """Return the figures of each step that a run has on file, under the names of the API.

    Args:
        folder: of the run.
        total_steps: of the whole training.
        epoch_ends: the steps after which a pass over the rows is done.
    """
    found: dict[int, dict[str, Any]] = {}
    for row in JsonLines(folder.metrics_file).rows():
        step = int(row["step"])
        metrics = found.setdefault(step, {"step": step, "total_steps": total_steps})
        for ours, theirs in (("loss", "train_loss"), ("accuracy", "train_mean_token_accuracy")):
            if row.get(ours) is not None:
                metrics[theirs] = row[ours]
        metrics |= validation_metrics(row, is_epoch_end=step in epoch_ends)
    return [found[step] for step in sorted(found) if "train_loss" in found[step]]


def validation_metrics(figures: Mapping[str, Any], *, is_epoch_end: bool) -> dict[str, float]:
    """Return a validation's figures under the names of the API; it always measures all rows."""
    found = {}
    for ours, theirs in (("validation_loss", "valid_loss"), ("validation_accuracy", "valid_mean_token_accuracy")):
        if figures.get(ours) is not None:
            found[theirs] = figures[ours]
            if is_epoch_end:
                found[f"full_{theirs}"] = figures[ours]
    return found


def whole_epochs(rows: int, batch_size: int, epochs: float) -> frozenset[int]:
    """Return the steps after which a pass over the rows is done, the last step among them."""
    return epoch_ends(rows, batch_size, epochs) | {step_count(rows, batch_size, epochs)}
