"""Many clients at once, each with a connection of its own, and how long their requests took."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any
from urllib.parse import urlsplit

_TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: what kind it was, when it began, how long it took; status 0 is no answer at all."""

    kind: str
    began: float
    seconds: float
    status: int


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body as JSON."""
        return json.loads(self.body)


class Caller:
    """A client with one connection; `log` holds its requests."""

    def __init__(self, url: str, seed: int = 0) -> None:
        self.random = Random(seed)
        self.log: list[Asked] = []
        address = urlsplit(url).netloc
        self._connection = http.client.HTTPConnection(address, timeout=_TIMEOUT_SECONDS)

    def get(self, path: str, kind: str = "get") -> Reply:
        """Ask for something."""
        return self.ask("GET", path, kind=kind)

    def post(self, path: str, body: object = None, kind: str = "post") -> Reply:
        """Send a JSON body."""
        content = b"" if body is None else json.dumps(body).encode()
        return self.ask("POST", path, content, {"content-type": "application/json"}, kind=kind)

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, *, kind: str = "other"
    ) -> Reply:
        """Send a request and read the whole answer."""
        began = time.monotonic()
        status = 0
        try:
            self._connection.request(method, path, body=body, headers=headers or {})
            reply = self._connection.getresponse()
            content = reply.read()
            status = reply.status
            return Reply(status, {name.lower(): value for name, value in reply.getheaders()}, content)
        except (OSError, http.client.HTTPException):
            self._connection.close()
            raise
        finally:
            self.log.append(Asked(kind, began, time.monotonic() - began, status))

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def crowd(url: str, count: int, seconds: float, visit: Callable[[Caller], object]) -> list[Asked]:
    """Let so many clients call `visit` again and again for so long; return all their requests."""
    until = time.monotonic() + seconds
    callers = [Caller(url, seed) for seed in range(count)]

    def live(caller: Caller) -> None:
        while time.monotonic() < until:
            # A lost connection stands in the log, with status 0.
            with contextlib.suppress(OSError, http.client.HTTPException):
                visit(caller)
        caller.close()

    in_threads([lambda caller=caller: live(caller) for caller in callers])  # type: ignore[misc]
    return [one for caller in callers for one in caller.log]


def in_threads(works: Sequence[Callable[[], object]]) -> None:
    """Do works at the same time.

    Raises:
        Exception: whatever the first of them that failed raised.
    """
    faults: list[Exception] = []

    def do(work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as fault:
            faults.append(fault)

    threads = [threading.Thread(target=do, args=(work,), daemon=True) for work in works]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    if faults:
        raise faults[0]


@dataclass
class Pulse:
    """Asks `/healthz` all the time; `log` holds when and how long."""

    log: list[Asked] = field(default_factory=list)


@contextlib.contextmanager
def pulse(url: str, every_seconds: float = 0.05) -> Iterator[Pulse]:
    """Ask whether the server is alive while the block lasts."""
    caller, has_ended = Caller(url), threading.Event()
    found = Pulse(caller.log)

    def beat() -> None:
        while not has_ended.wait(every_seconds):
            with contextlib.suppress(OSError, http.client.HTTPException):
                caller.get("/healthz", "health")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        has_ended.set()
        thread.join()
        caller.close()


def percentile(log: Sequence[Asked], share: float) -> float:
    """Return the seconds within which that share of the requests were answered; infinite if there were none."""
    seconds = sorted(one.seconds for one in log)
    return seconds[min(len(seconds) - 1, math.ceil(share * len(seconds)) - 1)] if seconds else math.inf


def per_second(log: Sequence[Asked]) -> float:
    """Return the rate of the requests that were answered."""
    if not log:
        return 0.0
    whole = max(one.began + one.seconds for one in log) - min(one.began for one in log)
    return sum(one.status > 0 for one in log) / whole


def faults(log: Sequence[Asked]) -> int:
    """Return how many requests got no answer, or one that blames the server."""
    return sum(one.status == 0 or one.status >= 500 for one in log)
