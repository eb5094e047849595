"""Who works on a job: claims, heartbeats, and numbers that keep out those who come too late.

A lease has no end in time. Its owner makes `beat` grow; whoever sees it stand still for a whole lease, by their own
clock, may take the job back. So no two clocks are ever compared, and one that jumps ends no lease.

Each claim gives the job another `fence`. What an attempt writes names its own; once it is another, the attempt is
stale, whatever it believes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from sqlalchemy import Connection, or_, select, update

from tunesmith.errors import TunesmithError
from tunesmith.record.jobs import HELD, Job, State, change_job, get_job, job_of
from tunesmith.record.tables import jobs

Work = Literal["validating", "training"]

#: No wait is this long; one that is was written by a clock that has jumped back since.
LONGEST_WAIT_SECONDS = 300
_FROM: Mapping[Work, tuple[State, State]] = {
    "validating": ("validating_files", "validating_files"),
    "training": ("queued", "running"),
}


class StaleAttempt(TunesmithError):
    """An attempt wants to write after its job was taken from it."""

    def __init__(self, job_id: str, fence: int) -> None:
        """Tell whose attempt it is."""
        super().__init__(f"Attempt {fence} of {job_id} isn't the one that may write.", code="stale_attempt")


@dataclass(frozen=True, slots=True)
class Lease:
    """Who holds a job, and how often they have said so."""

    job_id: str
    state: State
    owner: str
    fence: int
    beat: int


def find_work(connection: Connection, work: Work, now: int) -> bool:
    """Whether a job waits for somebody."""
    return connection.scalar(_waiting(work, now)) is not None


def claim(connection: Connection, work: Work, owner: str, now: int) -> Job | None:
    """Take the next job, or return None: higher priorities first, then in order.

    Args:
        connection: one that writes.
        work: what for.
        owner: who takes it.
        now: Unix seconds.
    """
    before, after = _FROM[work]
    row = connection.execute(
        update(jobs)
        .where(jobs.c.seq == _waiting(work, now).scalar_subquery(), jobs.c.state == before)
        .values(
            state=after,
            lease_owner=owner,
            fence=jobs.c.fence + 1,
            beat=jobs.c.beat + 1,
            attempts=jobs.c.attempts + 1,
        )
        .returning(jobs)
    )
    found = row.mappings().first()
    return None if found is None else job_of(found)


def beat(connection: Connection, owner: str) -> dict[str, Lease]:
    """Say that an owner is alive; return what it still holds, by job."""
    rows = connection.execute(
        update(jobs)
        .where(jobs.c.lease_owner == owner, jobs.c.state.in_(HELD))
        .values(beat=jobs.c.beat + 1)
        .returning(*_LEASE)
    )
    return {lease.job_id: lease for lease in map(_lease_of, rows)}


def leases(connection: Connection) -> list[Lease]:
    """Return all leases."""
    rows = connection.execute(select(*_LEASE).where(jobs.c.state.in_(HELD), jobs.c.lease_owner.is_not(None)))
    return [_lease_of(row) for row in rows]


def is_as_seen(connection: Connection, lease: Lease) -> bool:
    """Whether a lease is just as it was seen: the same attempt, and not a beat since."""
    query = select(jobs.c.seq).where(
        jobs.c.id == lease.job_id,
        jobs.c.lease_owner == lease.owner,
        jobs.c.fence == lease.fence,
        jobs.c.beat == lease.beat,
    )
    return connection.scalar(query) is not None


def fenced(connection: Connection, job_id: str, fence: int) -> Job:
    """Return the job of an attempt that may write; call it first in each block that writes for an attempt.

    Raises:
        StaleAttempt: it may not any more.
    """
    job = get_job(connection, job_id)
    if job.fence != fence or job.state not in HELD:
        raise StaleAttempt(job_id, fence)
    return job


def note_progress(connection: Connection, job: Job, step: int) -> None:
    """Note that weights of a later step are kept; failures before it don't count any more."""
    if step > job.step:
        change_job(connection, job.id, step=step, attempts=0)


def _waiting(work: Work, now: int) -> Any:
    """Return the query for the place of the next job."""
    return (
        select(jobs.c.seq)
        .where(
            jobs.c.state == _FROM[work][0],
            jobs.c.lease_owner.is_(None),
            or_(jobs.c.not_before <= now, jobs.c.not_before > now + LONGEST_WAIT_SECONDS),
        )
        .order_by(jobs.c.priority.desc(), jobs.c.seq)
        .limit(1)
    )


_LEASE = (jobs.c.id, jobs.c.state, jobs.c.lease_owner, jobs.c.fence, jobs.c.beat)


def _lease_of(row: Any) -> Lease:
    return Lease(row[0], cast(State, row[1]), row[2], row[3], row[4])
