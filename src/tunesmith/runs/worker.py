"""A worker: takes jobs from the record, lets each attempt run in processes of its own, and knows when to let go.

Its own interpreter never computes anything. A thread tells the record that it is alive and passes the answer on to the
guards of its attempts: an attempt whose guard hears nothing for `silence_seconds` is killed, which is well before
another worker may take the job (`lease_seconds` without a beat). So no job has two attempts, whether the worker is
killed, frozen or cut off from the record.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tunesmith.errors import StorageError
from tunesmith.record.database import Database
from tunesmith.record.home import Home
from tunesmith.record.job_leases import Lease, Work, beat, claim, find_work, leases
from tunesmith.record.jobs import Job, get_job
from tunesmith.record.workers import forget_worker, show_worker
from tunesmith.runs.devices import HeldDevice, devices_here, hold
from tunesmith.runs.exit_codes import CRASHED
from tunesmith.runs.job_endings import conclude, take_back
from tunesmith.runs.process_identity import ProcessIdentity, steady_seconds
from tunesmith.runs.run_lock import end_holder
from tunesmith.runs.running import Running, Watch
from tunesmith.specs.serving import KEY_VARIABLE

_log = logging.getLogger(__name__)

#: Not for attempts: they ask no server and answer nobody.
_SECRETS = (KEY_VARIABLE,)
_LOGS_KEPT = 5
#: How often a worker shows that it is there, also when it has nothing to do.
_SHOW_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How a worker works.

    Attributes:
        devices: what attempts run on, one each; None: what this machine has.
        lease_seconds: after so long without a beat, an owner is gone.
        silence_seconds: after so long without a beat, an attempt ends itself.
        beat_seconds: how often the worker says that it is alive.
        look_seconds: how often it looks for work.
        stop_seconds: how long attempts may take to keep their work when the worker stops.
        pause_seconds: how long an attempt may take to pause.
        end_seconds: how long an attempt may live on after its job has ended.
        log_bytes: how much is kept of what an attempt prints.
        attempt: the command of an attempt, without its job.
        validation: the command that looks at jobs' files.
    """

    devices: tuple[str, ...] | None = None
    lease_seconds: float = 30.0
    silence_seconds: float = 20.0
    beat_seconds: float = 2.0
    look_seconds: float = 0.25
    stop_seconds: float = 22.0
    pause_seconds: float = 120.0
    end_seconds: float = 8.0
    log_bytes: int = 4 * 2**20
    attempt: tuple[str, ...] = (sys.executable, "-m", "tunesmith.runs.attempt")
    validation: tuple[str, ...] = (sys.executable, "-m", "tunesmith.runs.validate")


class Worker:
    """One worker.

    Args:
        home: where its attempts keep their folders.
        open_database: opens the record; its thread of beats has one of its own, so that nothing waits before it.
        settings: how it works.
    """

    def __init__(self, home: Home, open_database: Callable[[], Database], settings: WorkerSettings) -> None:
        self._home = home
        self._database = open_database()
        self._beating = open_database()
        self._settings = settings
        self.owner = f"{ProcessIdentity.of_this()}.{secrets.token_hex(4)}"
        self._devices = settings.devices or devices_here()
        self._running: list[Running] = []
        self._validation: Running | None = None
        self._seen: dict[str, tuple[Lease, float]] = {}
        self._wake = threading.Event()
        self._is_stopping = False
        self._show_at = 0.0
        self._has_ended = threading.Event()

    def stop(self) -> None:
        """Let attempts keep their work, give the jobs back, and end; may be called by a signal's handler."""
        self._is_stopping = True
        self._wake.set()

    def run(self) -> None:
        """Work until told to stop."""
        beats = threading.Thread(target=self._beat_on, name="beats", daemon=True)
        beats.start()
        try:
            while not self._is_stopping:
                self._turn()
                self._wake.wait(self._settings.look_seconds)
            self._wind_up()
        finally:
            for one in self._children():
                one.kill()
            self._has_ended.set()
            beats.join(timeout=max(1.0, self._settings.beat_seconds))

    def _turn(self) -> None:
        """Do what there is to do now; what the record can't be asked about now is done in a later turn."""
        for part in (self._reap, self._take_back, self._start_validation, self._start_attempts):
            with _passing_refusals():
                part()

    def _wind_up(self) -> None:
        """Stop all attempts and give their jobs back."""
        for one in self._children():
            one.stop(self._settings.stop_seconds)
        give_up = time.monotonic() + self._settings.stop_seconds + 4
        while self._children() and time.monotonic() < give_up:
            with _passing_refusals():
                self._reap()
            time.sleep(0.05)

    def _children(self) -> list[Running]:
        return [*self._running, *([self._validation] if self._validation else [])]

    # Ends.

    def _reap(self) -> None:
        """See which processes have ended, and what becomes of their jobs."""
        if self._validation is not None and self._validation.has_ended():
            self._release_validating(self._validation)
            self._validation = None
        for one in [one for one in self._running if one.has_ended()]:
            assert one.exit_code is not None
            with self._database.write() as connection:
                job = conclude(connection, one.job_id, one.fence, one.exit_code, was_stopped=one.was_stopped)
            self._running.remove(one)
            _log.info("attempt %d of %s ended with %d; it is %s", one.fence, one.job_id, one.exit_code, job.state)
            if job.is_over:
                self._tidy(job)

    def _release_validating(self, ended: Running) -> None:
        """Let go of jobs that the look at files left behind."""
        assert ended.exit_code is not None
        with self._database.read() as connection:
            left = [lease for lease in leases(connection) if lease.owner == self.owner]
        for lease in left:
            if lease.state == "validating_files":
                with self._database.write() as connection:
                    conclude(connection, lease.job_id, lease.fence, ended.exit_code, was_stopped=ended.was_stopped)

    def _tidy(self, job: Job) -> None:
        """Remove the copies of a job's files; the logs stay."""
        for name in ("training.jsonl", "validation.jsonl"):
            (self._home.jobs / job.id / name).unlink(missing_ok=True)

    def _take_back(self) -> None:
        """Take jobs from owners who are gone; also own ones whose attempt could not be started."""
        with self._database.read() as connection:
            everybodys = leases(connection)
        mine = {one.job_id for one in self._running}
        found = [lease for lease in everybodys if lease.owner != self.owner]
        for lease in everybodys:
            if lease.owner == self.owner and lease.state != "validating_files" and lease.job_id not in mine:
                with self._database.write() as connection:
                    conclude(connection, lease.job_id, lease.fence, CRASHED, was_stopped=False)
        now = steady_seconds()
        before, self._seen = self._seen, {}
        for lease in found:
            earlier = before.get(lease.job_id)
            since = earlier[1] if earlier is not None and earlier[0] == lease else now
            self._seen[lease.job_id] = (lease, since)
            process = ProcessIdentity.parse(lease.owner)
            is_gone = process is not None and process.is_certainly_gone()
            if is_gone or now - since >= self._settings.lease_seconds:
                with self._database.write() as connection:
                    job = take_back(connection, lease)
                if job is not None:
                    # It may be frozen, and hold its device still.
                    end_holder(self._home.jobs / job.id)
                    _log.warning("%s was taken back from a worker that is gone; it is %s", job.id, job.state)

    # Beginnings.

    def _start_validation(self) -> None:
        if self._validation is not None or not self._is_there("validating"):
            return
        watch = self._watch("validation", "log")
        command = [*self._settings.validation, "--owner", self.owner]
        self._validation = Running(command, watch, self._environment(CUDA_VISIBLE_DEVICES=""))

    def _start_attempts(self) -> None:
        """Start as many attempts as there are jobs and free devices."""
        used = {one.device for one in self._running}
        for name in self._devices:
            if name in used or self._is_stopping:
                continue
            if not self._is_there("training"):
                return
            device = hold(name, self._home)
            if device is None:
                continue
            try:
                is_started = self._start_attempt(device)
            finally:
                # Whatever came of it: a worker that fails here, or freezes later, must not keep it.
                device.release()
            if not is_started:
                return

    def _start_attempt(self, device: HeldDevice) -> bool:
        """Take the next job, and start an attempt at it that holds the device too; return whether there was a job."""
        with self._database.write() as connection:
            job = claim(connection, "training", self.owner, int(time.time()))
        if job is None:
            return False
        command = [*self._settings.attempt, "--job", job.id, "--fence", str(job.fence)]
        watch = self._watch(job.id, f"attempt-{job.fence:04d}.log")
        environment = self._environment(**device.environment)
        self._running.append(Running(command, watch, environment, job_id=job.id, fence=job.fence, device=device))
        _log.info("attempt %d of %s starts on %s", job.fence, job.id, device.name)
        return True

    def _is_there(self, work: Work) -> bool:
        with self._database.read() as connection:
            return find_work(connection, work, int(time.time()))

    def _watch(self, folder: str, log: str) -> Watch:
        place = self._home.jobs / folder
        for old in sorted(place.glob("attempt-*.log"))[: -_LOGS_KEPT + 1]:
            old.unlink(missing_ok=True)
        return Watch(self._settings.silence_seconds, place / log, self._settings.log_bytes)

    def _environment(self, **changes: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in _SECRETS}
        return {**kept, "TUNESMITH_HOME": str(self._home.root), **changes}

    # Beats.

    def _beat_on(self) -> None:
        # At once for the first time, so that others see that there is a worker.
        wait_seconds = 0.0
        try:
            while not self._has_ended.wait(wait_seconds):
                wait_seconds = self._settings.beat_seconds
                with _passing_refusals():
                    self._beat()
        except Exception:
            # Without beats every attempt would be killed in turn; another worker does better.
            _log.exception("no sign of life can be given any more; the worker ends")
            self.stop()
        with _passing_refusals(), self._beating.write() as connection:
            forget_worker(connection, self.owner)

    def _beat(self) -> None:
        """Say that this worker is alive, and tell the guards; end attempts whose jobs aren't theirs any more."""
        running, validation = list(self._running), self._validation
        moment = steady_seconds()
        shows = moment >= self._show_at
        if not running and validation is None and not shows:
            return
        with self._beating.write() as connection:
            if shows:
                show_worker(connection, self.owner)
            held = beat(connection, self.owner)
        self._show_at = moment + _SHOW_SECONDS if shows else self._show_at
        if validation is not None:
            validation.confirm(moment)
        for one in running:
            lease = held.get(one.job_id)
            if lease is None or lease.fence != one.fence:
                self._let_go(one)
                continue
            one.confirm(moment)
            if lease.state == "pausing":
                one.stop(self._settings.pause_seconds)

    def _let_go(self, one: Running) -> None:
        """End an attempt whose job has ended or is another's."""
        with self._beating.read() as connection:
            job = get_job(connection, one.job_id)
        if job.state in ("succeeded", "failed"):
            # Its own doing: it tidies up after itself.
            one.confirm(steady_seconds())
            one.kill_after(self._settings.end_seconds)
        elif job.fence != one.fence:
            one.kill()


@contextmanager
def _passing_refusals() -> Iterator[None]:
    """Live on when the record can't be used now, or the system has no room for a process; a later turn tries again."""
    try:
        yield
    except (StorageError, OSError) as error:
        _log.warning("not now: %s", error)
