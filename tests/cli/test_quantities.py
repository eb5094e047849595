"""Numbers as people read them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tunesmith.cli.quantities import ago, amount, duration, plural, size

NOW = datetime(2030, 5, 17, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations(seconds: float, shown: str):
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"), [(512, "512 B"), (2_500, "2.5 kB"), (812_000_000, "812 MB"), (1_340_000_000, "1.3 GB")]
)
def test_sizes(count: float, shown: str):
    assert size(count) == shown


@pytest.mark.parametrize(
    ("gone", "shown"),
    [
        (timedelta(seconds=3), "just now"),
        (timedelta(minutes=5), "5 min ago"),
        (timedelta(hours=23), "23 h ago"),
        (timedelta(days=1, hours=2), "yesterday"),
        (timedelta(days=6), "6 days ago"),
        (timedelta(days=30), "17 Apr 2030"),
    ],
)
def test_times_gone_by(gone: timedelta, shown: str):
    assert ago((NOW - gone).isoformat(), NOW) == shown


def test_counts():
    assert plural(1, "row") == "1 row"
    assert plural(1200, "row") == "1,200 rows"
    assert amount(134_515_008) == "134.5 million"
    assert amount(73_728) == "73,728"
