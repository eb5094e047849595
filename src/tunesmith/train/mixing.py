"""How several sources share an epoch: by their weights, some rows more often than others, none forgotten.

An epoch holds as many rows as there are. A source of `rows` rows and weight `weight` gets a share of it in proportion
to (weight x rows)^(1 / temperature) (Raffel et al. 2019, arXiv:1910.10683, section 3.5.2). Over the epochs a source's
rows are gone through pass by pass, each pass in an order of its own: after any number of epochs no row of a source has
been seen more than once more often than another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Streams of random numbers of one seed: orders inside sources begin with this, orders of epochs with their number.
_WITHIN_SOURCES = 2**32


@dataclass(frozen=True)
class Mixture:
    """How many rows of each source an epoch holds.

    Attributes:
        members: for each source the numbers of its rows, at least one.
        counts: for each source how many rows of it an epoch holds.
    """

    members: tuple[tuple[int, ...], ...]
    counts: tuple[int, ...]

    @property
    def rows_per_epoch(self) -> int:
        """Rows in an epoch, all sources together."""
        return sum(self.counts)

    def epoch(self, number: int, seed: int) -> list[int]:
        """Return the row numbers of an epoch (the first is 0), shuffled.

        The same arguments give the same rows, whatever was asked before: that is what resuming relies on.
        """
        chosen = [
            row
            for source, count in enumerate(self.counts)
            for row in self._passes(source, number * count, (number + 1) * count, seed)
        ]
        shuffled: list[int] = np.random.default_rng([seed, number]).permutation(np.array(chosen, dtype=int)).tolist()
        return shuffled

    def _passes(self, source: int, start: int, end: int, seed: int) -> list[int]:
        """Return rows `start` to `end` of a source's endless sequence of shuffled passes."""
        rows = self.members[source]
        found: list[int] = []
        for number in range(start // len(rows), -(-end // len(rows))):
            order = np.random.default_rng([seed, _WITHIN_SOURCES, source, number]).permutation(len(rows))
            first = number * len(rows)
            found += [rows[index] for index in order[max(0, start - first) : end - first]]
        return found


def mixture(sources: Sequence[int], weights: Sequence[float], temperature: float = 1.0) -> Mixture | None:
    """Return how the sources share an epoch; None where each row simply comes once.

    Args:
        sources: for each row the number of its source.
        weights: for each source how much a row of it counts. Sources without rows are left out.
        temperature: 1 keeps the shares of `weight x rows`; more brings them closer together.
    """
    members = [tuple(row for row, of in enumerate(sources) if of == source) for source in range(len(weights))]
    present = [source for source, rows in enumerate(members) if rows]
    if len(present) < 2:
        return None
    sizes = np.array([weights[source] * len(members[source]) for source in present], dtype=np.float64)
    shares = (sizes / sizes.max()) ** (1.0 / temperature)
    counts = apportion(len(sources), (shares / shares.sum()).tolist())
    if counts == [len(members[source]) for source in present]:
        return None
    return Mixture(tuple(members[source] for source in present), tuple(counts))


def apportion(total: int, shares: Sequence[float]) -> list[int]:
    """Divide `total` by `shares` (they sum to 1): each gets its quota rounded down or up, but at least one.

    The largest remainders are rounded up. At least one for each may take what is needed from the largest.
    """
    quotas = [total * share for share in shares]
    counts = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(shares)), key=lambda part: (counts[part] - quotas[part], part))
    for part in by_remainder[: total - sum(counts)]:
        counts[part] += 1
    for part, count in enumerate(counts):
        if count == 0 and total >= len(shares):
            counts[part] = 1
            counts[max(range(len(shares)), key=lambda other: counts[other])] -= 1
    return counts
