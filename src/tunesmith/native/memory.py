"""Memory that is read again and again, in large pages where the operating system has some.

In pages of 2 MiB (Linux calls them transparent huge pages, and gives them where it is advised to) the processor finds
an address without a walk through tables, and memory is taken in few steps, each of which stops the computation.
"""

from __future__ import annotations

import math
import mmap
import threading

import torch
from torch import Tensor

_LARGE_PAGE_BYTES = 1 << 21
#: What is smaller shares a stretch of so many bytes with others: weights that are used together lie together.
_STRETCH_BYTES = 1 << 25
#: A cache line.
_ALIGNMENT_BYTES = 64


class _Stretches:
    """Gives out parts of stretches of memory; one goes back to the system when all its parts are gone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stretch: mmap.mmap | None = None
        self._used_bytes = 0

    def part(self, size_bytes: int) -> tuple[mmap.mmap, int]:
        """Return a stretch and where in it a part of zeros begins that nobody else has."""
        if size_bytes >= _STRETCH_BYTES:
            return _mapped(size_bytes), 0
        with self._lock:
            if self._stretch is None or self._used_bytes + size_bytes > len(self._stretch):
                self._stretch, self._used_bytes = _mapped(_STRETCH_BYTES), 0
            begin = self._used_bytes
            self._used_bytes += -(-size_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
            return self._stretch, begin


_stretches = _Stretches()


def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return zeros on the CPU; memory is taken as they are written over."""
    count = math.prod(shape)
    if count == 0:
        return torch.zeros(shape, dtype=dtype)
    stretch, begin = _stretches.part(count * dtype.itemsize)
    return torch.frombuffer(stretch, dtype=dtype, count=count, offset=begin).view(shape)


def _mapped(size_bytes: int) -> mmap.mmap:
    # Private, where there is a choice: memory that child processes share isn't given in large pages.
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}
    memory = mmap.mmap(-1, size_bytes, **private)
    if size_bytes >= _LARGE_PAGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
