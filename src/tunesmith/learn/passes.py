"""How a step is computed: how much at once, what twice, with which copies. Results differ in rounding alone."""

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
        copied_weights: whether the kernels multiply with copies of frozen weights, which are faster (see
            `models.adapters.panels`).
    """

    tokens_per_pass: int
    recomputed_layers: int = 0
    loss_chunk_tokens: int | None = None
    copied_weights: bool = False

    def lower(self, layers: int, device_type: str) -> Passes | None:
        """Return the next way to try where memory is short, the least slow first, or None if there is none.

        Without copies of the weights, recomputing begins anew: for a large model they are what takes the memory, for a
        small one the activations.

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
        if self.copied_weights:
            return replace(self, copied_weights=False, recomputed_layers=0)
        if half >= _MIN_TOKENS:
            return replace(self, tokens_per_pass=half)
        return None

    def __str__(self) -> str:
        """Return a phrase for people."""
        recomputed = f", {self.recomputed_layers} layers computed twice" if self.recomputed_layers else ""
        return f"{self.tokens_per_pass} tokens a pass{recomputed}"
