"""What preparing found out about the data: rows left out, and things a person should know."""

from __future__ import annotations

from dataclasses import dataclass

from tunesmith.data.examples import Place


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that isn't used; `code` is a stable word (`duplicate`, `too_long`, or a problem's code)."""

    place: Place
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about the data that doesn't stop the training but may spoil it.

    `count` is the number of rows it is about (0 when it is about all), `places` the first of them.
    """

    code: str
    message: str
    count: int = 0
    places: tuple[Place, ...] = ()
