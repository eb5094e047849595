"""How much memory keys and values take, and may take."""

from __future__ import annotations

import torch
from torch import Tensor

from tunesmith.generate.forward import Forward
from tunesmith.generate.pages import PAGE_TOKENS
from tunesmith.models.memory import free_bytes

#: Share of the free memory that one engine's keys and values may take: other models and their work need some too.
_SHARE = {"cuda": 0.6}
_CPU_SHARE = 0.25
#: Of that memory, so much is taken right away, at most and as a share: the system would hand it out while answers grow.
_TAKEN_BYTES, _TAKEN_SHARE = 1 << 29, 0.125
#: Of each request that may run at once, pages that are taken right away: longer texts are rare.
_TAKEN_PAGES = 8


def cache_bytes_by_default(device: torch.device) -> int:
    """Return the memory for keys and values where nobody said how much."""
    return int(free_bytes(device) * _SHARE.get(device.type, _CPU_SHARE))


def pages_taken_at_once(page_bytes: int, total: int, max_batch: int) -> int:
    """Return how many of `total` pages are taken from the system before there are requests."""
    most_bytes = min(_TAKEN_BYTES, _TAKEN_SHARE * total * page_bytes)
    return min(int(most_bytes // page_bytes), _TAKEN_PAGES * max_batch)


class PageSize:
    """A `Layout` that measures: the model computes two tokens, each layer's keys and values are counted.

    Attributes:
        bytes: of one page over all layers.
        layers: what keys of each layer are like, (heads, 0, size).
    """

    def __init__(self, device: torch.device) -> None:
        self.positions = torch.arange(2, device=device)
        self.bytes = 0
        self.layers: dict[int, Tensor] = {}

    @classmethod
    def of(cls, forward: Forward, device: torch.device) -> PageSize:
        """Measure a model."""
        measure = cls(device)
        forward.hidden(torch.zeros(2, dtype=torch.long, device=device), measure)
        return measure

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scale: float,  # noqa: ARG002
        window_tokens: int | None,  # noqa: ARG002
        softcap: float | None,  # noqa: ARG002
    ) -> Tensor:
        """See `Layout.attend`; what is computed means nothing."""
        self.layers[layer] = key[0, :, :0]
        self.bytes += (key.nbytes + value.nbytes) // key.shape[2] * PAGE_TOKENS
        return query.transpose(1, 2)
