"""Arithmetic that runs over a tensor's rows in pieces, so that what it reads twice is still in the cache."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

#: Numbers in one piece: a megabyte in float32, about what one core keeps close at hand.
_CACHED_NUMBERS = 1 << 18


def pieces(x: Tensor) -> Iterator[slice]:
    """Yield slices over the rows of `x` (M, width): small ones on a CPU, all rows at once elsewhere."""
    rows, width = x.shape
    size = max(16, _CACHED_NUMBERS // width) if x.device.type == "cpu" else max(1, rows)
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))
