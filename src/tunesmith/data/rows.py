"""A row as it was read, before anything is known about its form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tunesmith.data.examples import Place


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its place and its values by column, as JSON has them (text, number, bool, None, list, dict)."""

    place: Place
    values: dict[str, Any]
