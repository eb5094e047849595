"""What a load measured, against what must hold; kept in bench/results/load.json, which docs/reliability.md shows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from machine import machine_table
from tunesmith.record.atomic import write_json

RESULTS = Path(__file__).parents[1] / "results" / "load.json"


@dataclass(frozen=True, slots=True)
class Bar:
    """One thing that must hold."""

    what: str
    measured: str
    bar: str
    is_held: bool


@dataclass(frozen=True, slots=True)
class Load:
    """What a row of the catalogue gave: the work that was done, and what must hold of it."""

    row: str
    work: str
    bars: Sequence[Bar]


def at_least(what: str, value: float, bound: float, unit: str) -> Bar:
    """Return a bar for something that should be high."""
    return Bar(what, f"{_number(value)} {unit}", f"at least {_number(bound)} {unit}", value >= bound)


def at_most(what: str, value: float, bound: float, unit: str) -> Bar:
    """Return a bar for something that should be low."""
    return Bar(what, f"{_number(value)} {unit}", f"at most {_number(bound)} {unit}", value <= bound)


def milliseconds(what: str, seconds: float, bound_ms: float) -> Bar:
    """Return a bar for a time."""
    return at_most(what, seconds * 1000, bound_ms, "ms")


def none_of(what: str, count: int) -> Bar:
    """Return a bar for what must not happen."""
    return Bar(what, f"{count:,}", "none", count == 0)


def keep(load: Load, file: Path = RESULTS) -> None:
    """Add what was measured to the file of results; other rows stay as they are."""
    results: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"runs": {}}
    results["machine"] = machine_table()
    results["runs"][load.row] = {
        "on": datetime.now(UTC).date().isoformat(),
        "work": load.work,
        "bars": [asdict(one) for one in load.bars],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, results)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
