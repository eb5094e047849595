"""Room for a few things that many want: who uses what, what goes when another needs its room, and who waits.

Models in memory and adapters on a base are kept by the same rules:

- What somebody uses stays. What nobody uses stays until its room is needed; the least recently used goes first.
- Who finds everything in use waits, in order. If that takes too long, the least recently used thing is closed to new
  users: those it has finish, then it goes. So something that is in use without pause can't keep others out forever.

Nothing here computes, waits or has threads; the owner calls it under a lock of its own.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from tunesmith.errors import RequestError

K = TypeVar("K")
T = TypeVar("T")


@dataclass(eq=False, slots=True)
class Place(Generic[K, T]):
    """One thing on a shelf, or on its way there.

    Attributes:
        key: what it is.
        ready: gives the thing, or the error of its loading. It can't be cancelled: several may wait for it.
        users: how many use it or wait for it.
        since: when it was first asked for, by the shelf's clock.
    """

    key: K
    since: float
    ready: Future[T] = field(default_factory=Future)
    users: int = 0

    def __post_init__(self) -> None:
        self.ready.set_running_or_notify_cancel()

    @property
    def is_idle(self) -> bool:
        """Whether nobody would miss it."""
        return self.users == 0 and self.ready.done()


class Shelf(Generic[K, T]):
    """Places for at most `size` things.

    Args:
        size: things at once.
        start: called with a place that has got its room, and with the place that made it, if one had to: unload the
            one, load the other; then call `arrange`, or `failed` if it did. It must return at once.
        full: makes the error for those who may not even wait.
        max_waiting: users that may wait for room.
        patience_seconds: how long the first of them waits before something in use is closed to new users.
        clock: gives seconds.
    """

    def __init__(
        self,
        size: int,
        start: Callable[[Place[K, T], Place[K, T] | None], None],
        *,
        full: Callable[[], RequestError],
        max_waiting: int,
        patience_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._size = size
        self._start = start
        self._full = full
        self._max_waiting = max_waiting
        self._patience_seconds = patience_seconds
        self._clock = clock
        self._held: OrderedDict[K, Place[K, T]] = OrderedDict()  # the least recently used first
        self._leaving: Place[K, T] | None = None
        self._waiting: OrderedDict[K, Place[K, T]] = OrderedDict()

    @property
    def keys(self) -> list[K]:
        """What is here or being loaded, the least recently used first."""
        return [*([self._leaving.key] if self._leaving else []), *self._held]

    def take(self, key: K) -> Place[K, T]:
        """Use a thing; give it back in any case.

        Raises:
            RequestError: what `full` makes.
        """
        place = self._held.get(key) or self._waiting.get(key)
        if place is None:
            place = self._waiting[key] = Place(key, self._clock())
        place.users += 1
        if key in self._held:
            self._held.move_to_end(key)
        self.arrange()
        if key in self._waiting and sum(waiting.users for waiting in self._waiting.values()) > self._max_waiting:
            self.give_back(place)
            raise self._full()
        return place

    def give_back(self, place: Place[K, T]) -> None:
        """Count one user less."""
        place.users -= 1
        if place.users == 0 and self._waiting.get(place.key) is place:
            del self._waiting[place.key]
        self.arrange()

    def failed(self, place: Place[K, T]) -> None:
        """Take off what couldn't be loaded, before its users are told: the next who asks tries again."""
        if self._leaving is place:
            self._leaving = None
        elif self._held.get(place.key) is place:
            del self._held[place.key]
        self.arrange()

    def clear(self) -> tuple[list[Place[K, T]], list[Place[K, T]]]:
        """Forget everything; return what had its room, and what waited for it."""
        inside = [*([self._leaving] if self._leaving else []), *self._held.values()]
        waiting = list(self._waiting.values())
        self._leaving = None
        self._held.clear()
        self._waiting.clear()
        return inside, waiting

    def arrange(self) -> None:
        """Let those who wait have what room there is; called whenever something has changed."""
        while self._waiting:
            key, first = next(iter(self._waiting.items()))
            is_back = self._leaving is not None and self._leaving.key == key
            evicted = None
            # Never the same thing twice: what comes back waits until its former self is gone.
            if is_back or len(self._held) + (self._leaving is not None) >= self._size:
                evicted = self._take_idle(from_held=not is_back)
                if evicted is None:
                    self._close_one(first)
                    return
            # Taken off first: `start` may call back.
            del self._waiting[key]
            self._held[key] = first
            self._start(first, evicted)
        if self._leaving is not None:  # nobody needs its room any more
            back, self._leaving = self._leaving, None
            self._held[back.key] = back

    def _take_idle(self, *, from_held: bool) -> Place[K, T] | None:
        """Take off what goes first, if anything is idle."""
        if self._leaving is not None and self._leaving.is_idle:
            idle, self._leaving = self._leaving, None
            return idle
        for key, place in self._held.items() if from_held else ():
            if place.is_idle:
                return self._held.pop(key)
        return None

    def _close_one(self, first: Place[K, T]) -> None:
        """Close something to new users, if `first` has waited long enough."""
        if self._leaving is None and self._clock() - first.since >= self._patience_seconds:
            key = next(iter(self._held))
            self._leaving = self._held.pop(key)
