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


def cache_bytes_by_default(device: torch.device) -> int:
    """Return the memory for keys and values where nobody said how much."""
    return int(free_bytes(device) * _SHARE.get(device.type, _CPU_SHARE))


class PageSize:
    """A `Layout` that measures: the model computes two tokens, each layer's keys and values are counted."""

    def __init__(self, device: torch.device) -> None:
        self.positions = torch.arange(2, device=device)
        self.bytes = 0

    @classmethod
    def of(cls, forward: Forward, device: torch.device) -> int:
        """Return the bytes of one page over all layers."""
        measure = cls(device)
        forward.hidden(torch.zeros(2, dtype=torch.long, device=device), measure)
        return measure.bytes

    def attend(
        self,
        layer: int,  # noqa: ARG002
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scale: float,  # noqa: ARG002
        window_tokens: int | None,  # noqa: ARG002
        softcap: float | None,  # noqa: ARG002
    ) -> Tensor:
        """See `Layout.attend`; what is computed means nothing."""
        self.bytes += (key.nbytes + value.nbytes) // key.shape[2] * PAGE_TOKENS
        return query.transpose(1, 2)
