"""Medians, spreads and ratios of alternating runs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """A measurement that was repeated: its median, lowest and highest value."""

    median: float
    low: float
    high: float

    def text(self, digits: int = 0, unit: str = "") -> str:
        """Return `412 (405 to 420) tokens/s`, or without the brackets if there is one value."""
        last = f" {unit}" if unit else ""
        if self.low == self.high:
            return f"{self.median:,.{digits}f}{last}"
        return f"{self.median:,.{digits}f} ({self.low:,.{digits}f} to {self.high:,.{digits}f}){last}"


def spread(values: Sequence[float]) -> Spread:
    """Return the spread of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Return the spread of the ratios of runs that alternated: the first to the first, the second to the second.

    Neighbours in time share the machine's mood, so their ratio is steadier than the ratio of medians. Runs without a
    neighbour are left out.
    """
    return spread([one / other for one, other in zip(ours, theirs, strict=False)])


def rate(amounts: Sequence[float], seconds: Sequence[float], warm_up: int = 1) -> float:
    """Return amounts a second over all steps but the first `warm_up`."""
    return sum(amounts[warm_up:]) / sum(seconds[warm_up:])


def final_loss(losses: Sequence[float]) -> float:
    """Return the mean over the last quarter of the steps, at least one."""
    return statistics.fmean(losses[-max(1, len(losses) // 4) :])
