"""Which workers there are. Each writes now and then that it is alive, and takes its row away when it ends in order.

The row of one that was killed stands still; whoever looks sees that by their own clock (`WorkerWatch`), so no two
clocks are compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy import Connection, delete, select, update

from tunesmith.record.tables import workers

#: A worker that hasn't written for so long isn't counted.
SILENCE_SECONDS = 35.0
#: Rows that stand still for so long go.
_FORGOTTEN_SECONDS = 24 * 3600


def show_worker(connection: Connection, owner: str) -> None:
    """Note that a worker is alive."""
    now = int(time.time())
    values = {"beat": workers.c.beat + 1, "seen_at": now}
    if connection.execute(update(workers).where(workers.c.owner == owner).values(values)).rowcount:
        return
    connection.execute(workers.insert().values(owner=owner, started_at=now, beat=1, seen_at=now))
    connection.execute(delete(workers).where(workers.c.seen_at < now - _FORGOTTEN_SECONDS))


def forget_worker(connection: Connection, owner: str) -> None:
    """Note that a worker has ended."""
    connection.execute(delete(workers).where(workers.c.owner == owner))


class WorkerWatch:
    """Counts the workers that are alive. One that is seen for the first time counts until it has been silent too long.

    Args:
        is_gone: whether a worker has ended for certain, by its name.
        clock: gives seconds that nobody sets.
    """

    def __init__(self, is_gone: Callable[[str], bool], clock: Callable[[], float] = time.monotonic) -> None:
        self._is_gone = is_gone
        self._clock = clock
        self._seen: dict[str, tuple[int, float]] = {}

    def count(self, connection: Connection) -> int:
        """Return how many there are."""
        now = self._clock()
        seen: dict[str, tuple[int, float]] = {}
        for owner, beat in connection.execute(select(workers.c.owner, workers.c.beat)):
            earlier = self._seen.get(owner)
            seen[owner] = earlier if earlier is not None and earlier[0] == beat else (beat, now)
        self._seen = seen
        alive = [owner for owner, (_, since) in seen.items() if now - since < SILENCE_SECONDS]
        return sum(not self._is_gone(owner) for owner in alive)
