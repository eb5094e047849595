"""Layers that follow each other, in one call of the kernels: between layers, Python takes as long as attention does."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from tunesmith.generate.layout import StepLayout
from tunesmith.generate.linear_map import AdapterRows, LinearMap
from tunesmith.generate.narrow_map import even, side_by_side
from tunesmith.models.adapters.served import LowRank, ServedAdapter
from tunesmith.models.attention import Layout
from tunesmith.native.calls import StepArguments
from tunesmith.native.layers import MOST_ADAPTED, LayerParts, NarrowLayers, NativeLayers


class Chain:
    """Layers of which each gets what the one before it gives, and all the same rotation.

    Args:
        layers: the layers, the first one first.
        maps: each layer's maps: queries, keys and values; out; gate; up; down.

    Attributes:
        result: (1, T, H), what the last layer gives in the current pass; None: the layers have to compute one by one.
    """

    def __init__(self, layers: Sequence[LayerParts], maps: Sequence[Sequence[LinearMap]]) -> None:
        self.result: Tensor | None = None
        self._first = layers[0]
        self._maps = maps
        self._layers = NativeLayers(self._first.qkv.kernels, layers)
        own = [[made.own_low for made in of_layer] for of_layer in maps]
        self._has_own = any(low is not None for lows in own for low in lows)
        self._own = self._narrow(own) if self._has_own else None
        self._adapters: WeakKeyDictionary[ServedAdapter, NarrowLayers | None] = WeakKeyDictionary()

    def begin(
        self, hidden: Tensor, rotation: tuple[Tensor, Tensor], layout: Layout | None, rows: Sequence[AdapterRows]
    ) -> None:
        """Compute all layers if the kernels can; `hidden` (T, H) is what the first one gets."""
        self.result = None
        adapted = self._adapted(rows, len(hidden))
        if not isinstance(layout, StepLayout) or adapted is None:
            return
        first, memory = self._first, layout.memory

        def kept(parts: LayerParts) -> tuple[Tensor, Tensor]:
            return memory.layer(parts.index, hidden.new_empty(parts.key_heads, 0, parts.size))

        def place(step: StepArguments) -> None:
            layout.native.place(step, first.heads // first.key_heads)
            step.cosines, step.sines = rotation[0].data_ptr(), rotation[1].data_ptr()

        self._layers.keep_in(memory, kept)
        self.result = self._layers(hidden.contiguous(), place, adapted).unsqueeze(0)

    def _adapted(self, rows: Sequence[AdapterRows], count: int) -> list[tuple[int, int, NarrowLayers]] | None:
        """Return which rows go through what; None if that is more than the kernels do."""
        if self._has_own:
            return None if rows or self._own is None else [(0, count, self._own)]
        found = [(part.start, part.end, self._narrow_of(part.adapter)) for part in rows]
        known = [(start, end, narrow) for start, end, narrow in found if narrow is not None]
        return known if len(known) == len(found) <= MOST_ADAPTED else None

    def _narrow_of(self, adapter: ServedAdapter) -> NarrowLayers | None:
        if adapter not in self._adapters:
            self._adapters[adapter] = self._narrow([[made.low_of(adapter) for made in maps] for maps in self._maps])
        return self._adapters[adapter]

    def _narrow(self, lows: Sequence[Sequence[LowRank | None]]) -> NarrowLayers | None:
        """Lay out what is added to each layer's maps; None if that isn't narrow products alone (DoRA)."""
        known = [low for of_layer in lows for low in of_layer if low is not None]
        if any(low.factors is not None or low.a.dtype != torch.bfloat16 for low in known):
            return None
        layers = []
        for maps, (qkv, out, gate, up, down) in zip(self._maps, lows, strict=True):
            widths = [maps[2].outputs, maps[3].outputs]
            gated = side_by_side([gate, up], widths)
            of_gated = None
            if gated is not None:
                a, b = even(gated)
                of_gated = a, b[: widths[0]], b[widths[0] :]
            layers.append((_even(qkv), _even(out), of_gated, _even(down)))
        return NarrowLayers(self._first.qkv.kernels, layers)


def _even(low: LowRank | None) -> tuple[Tensor, Tensor] | None:
    return None if low is None else even(low)
