"""How a step is computed: how much at once, and what is computed twice to save memory. Never what it computes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

#: Fewer tokens at once than this and matrix products become slow, by device; then recomputing costs less.
_COMFORTABLE_TOKENS = {"cpu": 512, "cuda": 4096}
#: Below this, single rows decide what a pass takes.
_MIN_TOKENS = 64
#: Targets projected to the vocabulary at once where memory is short.
_SMALL_LOSS_CHUNK = 64


@dataclass(frozen=True, slots=True)
class Passes:
    """The way in which each optimiser step is computed.

    Attributes:
        tokens_per_pass: tokens in one forward and backward pass, shared text counted once.
        recomputed_layers: so many of the first layers keep only their input and compute the rest again.
        loss_chunk_tokens: targets projected to the vocabulary at once; None: what suits the device.
    """

    tokens_per_pass: int
    recomputed_layers: int = 0
    loss_chunk_tokens: int | None = None

    def lower(self, layers: int, device_type: str) -> Passes | None:
        """Return the next way that needs less memory, the least slow first, or None if there is none.

        Args:
            layers: decoder layers of the model.
            device_type: `cpu` or `cuda`.
        """
        half = self.tokens_per_pass // 2
        if half >= _COMFORTABLE_TOKENS.get(device_type, _COMFORTABLE_TOKENS["cpu"]):
            return replace(self, tokens_per_pass=half)
        if self.loss_chunk_tokens is None:
            return replace(self, loss_chunk_tokens=_SMALL_LOSS_CHUNK)
        if self.recomputed_layers < layers:
            more = self.recomputed_layers + math.ceil(layers / 4)
            return replace(self, recomputed_layers=min(layers, more))
        if half >= _MIN_TOKENS:
            return replace(self, tokens_per_pass=half)
        return None

    def __str__(self) -> str:
        """Return a phrase for people."""
        recomputed = f", {self.recomputed_layers} layers computed twice" if self.recomputed_layers else ""
        return f"{self.tokens_per_pass} tokens a pass{recomputed}"
