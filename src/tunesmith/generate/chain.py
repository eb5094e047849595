"""Layers that follow each other, in one call of the kernels: between layers, Python takes as long as attention does."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tunesmith.generate.layout import StepLayout
from tunesmith.native.calls import StepArguments
from tunesmith.native.layers import LayerParts, NativeLayers


class Chain:
    """Layers of which each gets what the one before it gives, and all the same rotation.

    Args:
        layers: the layers, the first one first.
    """

    def __init__(self, layers: Sequence[LayerParts]) -> None:
        self._first = layers[0]
        self._layers = NativeLayers(self._first.qkv.kernels, layers)

    def __call__(self, hidden: Tensor, rotation: tuple[Tensor, Tensor], layout: StepLayout) -> Tensor:
        """Map (T, H), what the first layer gets, to what the last one gives."""
        first, memory = self._first, layout.memory

        def kept(parts: LayerParts) -> tuple[Tensor, Tensor]:
            return memory.layer(parts.index, hidden.new_empty(parts.key_heads, 0, parts.size))

        def place(step: StepArguments) -> None:
            layout.native.place(step, first.heads // first.key_heads)
            step.cosines, step.sines = rotation[0].data_ptr(), rotation[1].data_ptr()

        self._layers.keep_in(memory, kept)
        return self._layers(hidden.contiguous(), place)
