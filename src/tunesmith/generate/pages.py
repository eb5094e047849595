"""Keys and values in pages of 64 tokens: who holds which page, and the memory behind them.

A page belongs to every request that reads it and to the prefix cache, and is free when nobody holds it any more. Free
pages with the lowest numbers are given out first: pages that are read in one step then lie close to each other, and
attention reads them in place.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tunesmith.native.memory import zeros

#: Tokens in a page.
PAGE_TOKENS = 64


def pages_for(tokens: int) -> int:
    """Return how many pages hold `tokens` tokens."""
    return -(-tokens // PAGE_TOKENS)


class PagePool:
    """Counts who holds each of `total` pages.

    Attributes:
        total: number of pages.
        idle: pages that the prefix cache alone holds; it could give them up.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.idle = 0
        self._holders = [0] * total
        self._is_cached = [False] * total
        self._free = list(range(total))  # a heap

    @property
    def free(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    def take(self) -> int:
        """Return a free page, which the caller holds now.

        Raises:
            IndexError: none is free.
        """
        page = heapq.heappop(self._free)
        self._holders[page] = 1
        return page

    def hold(self, page: int) -> None:
        """Count a further request that holds a page."""
        self._idle_changes(page, -1)
        self._holders[page] += 1

    def let_go(self, page: int) -> None:
        """Count one request less; a page that nobody holds is free."""
        if self._holders[page] == 0:
            raise ValueError(f"nobody holds page {page}")
        self._holders[page] -= 1
        self._idle_changes(page, 1)
        self._free_if_unused(page)

    def cache(self, page: int) -> None:
        """The prefix cache holds a page that a request holds as well."""
        if self._is_cached[page] or self._holders[page] == 0:
            raise ValueError(f"page {page} can't be cached")
        self._is_cached[page] = True

    def uncache(self, page: int) -> None:
        """The prefix cache gives a page up."""
        if not self._is_cached[page]:
            raise ValueError(f"page {page} isn't cached")
        self._idle_changes(page, -1)
        self._is_cached[page] = False
        self._free_if_unused(page)

    def is_idle(self, page: int) -> bool:
        """Whether the prefix cache alone holds a page."""
        return self._is_cached[page] and self._holders[page] == 0

    def _idle_changes(self, page: int, by: int) -> None:
        """Count a page that is idle, or was until now."""
        if self.is_idle(page):
            self.idle += by

    def _free_if_unused(self, page: int) -> None:
        if self._holders[page] == 0 and not self._is_cached[page]:
            heapq.heappush(self._free, page)


class PageMemory:
    """For each layer, keys and values of shape (pages, key heads, 64, head size).

    Memory on a CPU is taken from the operating system as it is written. A layer appears when it is first written;
    layers may differ in heads and sizes.

    Args:
        total: number of pages.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    def layer(self, layer: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return a layer's keys and values; a new layer's are made like new keys `like` (heads, N, size)."""
        if layer not in self._keys:
            shape = (self._total, like.shape[0], PAGE_TOKENS, like.shape[2])
            self._keys[layer], self._values[layer] = _zeros(shape, like), _zeros(shape, like)
        return self._keys[layer], self._values[layer]

    def take(self, layers: Mapping[int, Tensor], pages: int) -> None:
        """Take the memory of the first `pages` pages, before they are used: while answers grow, that would stop them.

        Args:
            layers: what keys of each layer are like, (heads, 0, size).
            pages: how many.
        """
        for layer, like in layers.items():
            for kept in self.layer(layer, like):
                if kept.device.type == "cpu":
                    kept[:pages] = 0

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy whole pages; all are read before one is written."""
        come_from, go_to = self._places(sources), self._places(targets)
        for kept in (*self._keys.values(), *self._values.values()):
            kept[go_to] = kept[come_from]

    def clear(self, pages: Sequence[int]) -> None:
        """Write zeros over pages."""
        places = self._places(pages)
        for kept in (*self._keys.values(), *self._values.values()):
            kept[places] = 0

    def _places(self, pages: Sequence[int]) -> Tensor:
        """Return page numbers where the pages are."""
        device = next((kept.device for kept in self._keys.values()), None)
        return torch.tensor(pages, dtype=torch.long, device=device)


def _zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return zeros, which cost nothing on a CPU until they are written over."""
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    return zeros(shape, like.dtype)
