"""L01: many clients that list, on a record that is full."""

from __future__ import annotations

import statistics
import time

from load.bars import Load, at_least, at_most, milliseconds, none_of
from load.crowd import Caller, crowd, faults, per_second, percentile
from load.filled import fill
from load.server import new_home, serving

_PAGES = 15


def measure(
    files: int = 10_000, jobs: int = 10_000, events: int = 1_000_000, clients: int = 32, seconds: float = 60.0
) -> Load:
    """Fill a record and let clients read pages of it at any place."""
    with new_home() as home, serving(home) as server:
        fill(server, files, jobs, events)
        caller = Caller(server.url)
        places = {path: _cursors(caller, path) for path in ("/v1/files", "/v1/fine_tuning/jobs")}
        some_jobs = places["/v1/fine_tuning/jobs"]

        def visit(one: Caller) -> None:
            match one.random.randrange(3):
                case 0:
                    one.get(f"/v1/fine_tuning/jobs/{one.random.choice(some_jobs)}/events?limit=20", "events")
                case 1:
                    one.get(f"/v1/files?limit=20&after={one.random.choice(places['/v1/files'])}", "files")
                case _:
                    one.get(f"/v1/fine_tuning/jobs?limit=20&after={one.random.choice(some_jobs)}", "jobs")

        log = crowd(server.url, clients, seconds, visit)
        slower = max(_last_to_first(caller, path, cursors) for path, cursors in places.items())
        caller.close()
    work = (
        f"{files:,} files, {jobs:,} jobs, {events:,} events; {clients} clients read pages of 20 for {seconds:.0f} s, "
        f"{len(log):,} requests"
    )
    return Load(
        "L01",
        work,
        [
            at_least("lists", per_second(log), 150, "requests/s"),
            milliseconds("p99", percentile(log, 0.99), 250),
            at_most("last page to first page", slower, 2, "times"),
            none_of("5xx and lost", faults(log)),
        ],
    )


def _cursors(caller: Caller, path: str) -> list[str]:
    """Return an object of each hundred."""
    found: list[str] = []
    more = ""
    while True:
        page = caller.get(f"{path}?limit=100{more}").json()
        if page["last_id"] is not None:
            found.append(page["last_id"])
        if not page["has_more"]:
            return found
        more = f"&after={page['last_id']}"


def _last_to_first(caller: Caller, path: str, cursors: list[str]) -> float:
    first = _median_seconds(caller, f"{path}?limit=20")
    last = _median_seconds(caller, f"{path}?limit=20&after={cursors[-2]}")
    return last / first


def _median_seconds(caller: Caller, path: str) -> float:
    times = []
    for _ in range(_PAGES):
        began = time.monotonic()
        caller.get(path)
        times.append(time.monotonic() - began)
    return statistics.median(times)
