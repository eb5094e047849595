"""Numbers as people read them: durations, sizes, times gone by."""

from __future__ import annotations

from datetime import UTC, datetime


def duration(seconds: float) -> str:
    """Return `4.2 s`, `48 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(count: float) -> str:
    """Return bytes as `812 MB` or `1.3 GB`."""
    for unit, power in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= power:
            value = count / power
            return f"{value:.1f} {unit}" if value < 10 else f"{value:,.0f} {unit}"
    return f"{count:.0f} B"


def amount(count: float) -> str:
    """Return a large count as `134.5 million`, a small one in full."""
    for word, power in (("billion", 1e9), ("million", 1e6)):
        if count >= power:
            return f"{count / power:.1f} {word}"
    return f"{count:,.0f}"


def ago(iso_time: str, now: datetime | None = None) -> str:
    """Return how long ago an ISO 8601 time was: `just now`, `5 min ago`, `yesterday`, or the day."""
    then = datetime.fromisoformat(iso_time)
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    seconds = ((now or datetime.now(UTC)) - then).total_seconds()
    if seconds < 60:
        return "just now"
    for unit, length, most in (("min", 60, 3600), ("h", 3600, 86_400)):
        if seconds < most:
            return f"{int(seconds // length)} {unit} ago"
    days = int(seconds // 86_400)
    if days < 14:
        return "yesterday" if days == 1 else f"{days} days ago"
    return f"{then.astimezone():%-d %b %Y}" if then.year > 1 else iso_time


def plural(count: int, noun: str) -> str:
    """Return `1 row`, `1,200 rows`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
