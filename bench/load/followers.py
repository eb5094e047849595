"""L07: clients that follow the events of one job by polling, and reconnect."""

from __future__ import annotations

import threading
import time

from load.bars import Load, milliseconds, none_of
from load.crowd import Caller, faults, in_threads, percentile
from load.mixture import create_job, upload
from load.server import LoadServer, new_home, serving
from tunesmith.record.job_events import NewEvent, add_events

_PAGE = 100
_POLL_SECONDS = 1.0
_EVENTS_EACH = 5
_WRITE_SECONDS = 0.1


def measure(followers: int = 100, seconds: float = 60.0) -> Load:
    """Let clients follow a job that tells something all the time."""
    with new_home() as home, serving(home) as server:
        first = Caller(server.url)
        job = create_job(first, upload(first))
        first.close()
        is_over = threading.Event()
        callers = [Caller(server.url, seed) for seed in range(followers)]
        seen: list[list[str]] = [[] for _ in callers]
        works = [
            lambda caller=caller, known=known: _follow(caller, job, known, is_over)
            for caller, known in zip(callers, seen, strict=True)
        ]
        in_threads([lambda: _tell(server, job, seconds, is_over), *works])
        told = _all_events(server, job)
    log = [one for caller in callers for one in caller.log]
    wrong = sum(known != told for known in seen)
    work = f"{followers} clients poll once a second for {seconds:.0f} s and reconnect at times; {len(told):,} events"
    return Load(
        "L07",
        work,
        [
            none_of("followers that missed or repeated an event", wrong),
            none_of("5xx and lost", faults(log)),
            milliseconds("p99 of a poll", percentile(log, 0.99), 500),
        ],
    )


def _tell(server: LoadServer, job: str, seconds: float, is_over: threading.Event) -> None:
    until = time.monotonic() + seconds
    try:
        while time.monotonic() < until:
            with server.database.write() as connection:
                add_events(connection, job, [NewEvent("something happened") for _ in range(_EVENTS_EACH)])
            time.sleep(_WRITE_SECONDS)
    finally:
        is_over.set()


def _follow(caller: Caller, job: str, known: list[str], is_over: threading.Event) -> None:
    """Keep `known` up to date, the oldest first."""
    while True:
        is_last = is_over.is_set()
        known += _news(caller, job, set(known[-_PAGE:]))
        if is_last:
            break
        if caller.random.random() < 0.2:
            caller.close()
        is_over.wait(_POLL_SECONDS)
    caller.close()


def _news(caller: Caller, job: str, known: set[str]) -> list[str]:
    """Return the events behind the known ones, the oldest first; pages begin with the newest."""
    found: list[str] = []
    more = ""
    while True:
        page = caller.get(f"/v1/fine_tuning/jobs/{job}/events?limit={_PAGE}{more}", "events").json()
        for event in page["data"]:
            if event["id"] in known:
                return found[::-1]
            found.append(event["id"])
        if not page["has_more"]:
            return found[::-1]
        more = f"&after={page['data'][-1]['id']}"


def _all_events(server: LoadServer, job: str) -> list[str]:
    caller = Caller(server.url)
    found = _news(caller, job, set())
    caller.close()
    return found
