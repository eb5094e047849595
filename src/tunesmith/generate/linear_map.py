"""Frozen linear layers as decoding computes them: those of one input together, with adapters beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunesmith.generate.narrow_map import NarrowMap, side_by_side
from tunesmith.generate.products import Product, product_of
from tunesmith.models.adapters.frozen import weight_of, widths_of
from tunesmith.models.adapters.lora_layer import LoraLinear
from tunesmith.models.adapters.served import LowRank, ServedAdapter, low_rank_of
from tunesmith.native.product import NativeProduct


@dataclass(frozen=True, slots=True)
class AdapterRows:
    """Rows `start` to `end` (exclusive) of a flat batch go through `adapter`."""

    start: int
    end: int
    adapter: ServedAdapter


class LinearMap:
    """Linear layers that read the same input, computed as one product, with adapters beside it.

    Args:
        modules: the layers by their dotted names: `nn.Linear`, `Conv1D`, or anything that maps rows (weights in 4
            bits), which is then called as it is. What a LoRA in the model adds to one of them is computed as that of
            an adapter beside it, so that a model says the same before it is saved and when it is served.
        pack: whether copies of the weights may be made.
    """

    def __init__(self, modules: Mapping[str, nn.Module], *, pack: bool) -> None:
        self.names = tuple(modules)
        self._modules = list(modules.values())
        self._originals = [original_forward(_frozen(module)) for module in self._modules]
        self._bias = _joined_bias([_frozen(module) for module in self._modules])
        self._product = _joined([_frozen(module) for module in self._modules], self._bias, pack=pack)
        self._widths = [widths_of(_frozen(module))[1] for module in self._modules]
        #: What LoRA layers in the model itself add.
        self.own_low = side_by_side(_own_low_rank(self._modules), self._widths)
        self._own = None if self.own_low is None else NarrowMap(self.own_low, self._bias)
        #: Whether oneDNN may go on with the product's result, where nothing has to be added to it before.
        self.may_fuse = True
        #: Whether the product was made of a copy, so that the layers' own weights can be given up.
        self.is_copy = self._product is not None and (len(self._modules) > 1 or _is_packed(self._product))
        self._narrow_maps: WeakKeyDictionary[ServedAdapter, NarrowMap | None] = WeakKeyDictionary()

    @property
    def native(self) -> NativeProduct | None:
        """The one product, if it goes through Tunesmith's kernels."""
        return self._product if isinstance(self._product, NativeProduct) else None

    def weight(self, name: str) -> Tensor:
        """Return the weight (out, in) of one of the layers."""
        assert self._product is not None
        index = self.names.index(name)
        start = sum(self._widths[:index])
        return self._product.weight()[start : start + self._widths[index]]

    def bare(self, rows: Sequence[AdapterRows]) -> Product | NativeProduct | None:
        """Return the one product if it is all there is and may go on with its result, else None."""
        product = self._product
        if rows or self._own is not None or product is None:
            return None
        if isinstance(product, NativeProduct) or (product.is_packed and self.may_fuse):
            return product
        return None

    def __call__(self, x: Tensor, rows: Sequence[AdapterRows] = ()) -> Tensor:
        """Map (M, in) to (M, outputs of all layers side by side)."""
        added = [] if self._own is None else [(0, len(x), self._own)]
        for part in rows:
            narrow = self._narrow_map_of(part.adapter)
            if narrow is not None:
                added.append((part.start, part.end, narrow))
        if self._product is None:
            parts = [forward(x) for forward in self._originals]
            out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        elif isinstance(self._product, NativeProduct):
            # Of a row, one adapter's part can be added before the product is rounded.
            sooner = added[:1] if self._own is not None else added
            sooner = [one for one in sooner if one[2].native is not None]
            out = self._product(x, [narrow.further(x, start, end) for start, end, narrow in sooner])
            added = [one for one in added if one not in sooner]
        else:
            out = self._product(x)
        for start, end, narrow in added:
            narrow.add_to(out[start:end], x[start:end])
        return out

    def added_to(self, residual: Tensor, x: Tensor, rows: Sequence[AdapterRows] = ()) -> Tensor:
        """Return `residual + self(x)`."""
        bare = self.bare(rows)
        return self(x, rows).add_(residual) if bare is None else bare.added_to(residual, x)

    @property
    def outputs(self) -> int:
        """Outputs of all layers side by side."""
        return sum(self._widths)

    def low_of(self, adapter: ServedAdapter) -> LowRank | None:
        """Return what an adapter adds to these layers."""
        return side_by_side([adapter.layers.get(name) for name in self.names], self._widths)

    def _narrow_map_of(self, adapter: ServedAdapter) -> NarrowMap | None:
        """Return an adapter's part in these layers."""
        if adapter not in self._narrow_maps:
            low = self.low_of(adapter)
            self._narrow_maps[adapter] = None if low is None else NarrowMap(low, self._bias)
        return self._narrow_maps[adapter]


def original_forward(module: nn.Module) -> Callable[..., Any]:
    """Return a module's own way of computing, whatever took over its calls (see `generate.exchange`)."""
    current: Callable[..., Any] = module.forward
    return getattr(current, "original", current)


def _frozen(module: nn.Module) -> Any:
    return module.linear if isinstance(module, LoraLinear) else module


def _joined(layers: Sequence[Any], bias: Tensor | None, *, pack: bool) -> Product | NativeProduct | None:
    """Return one product for all layers, or None if one of them isn't a plain linear one."""
    if any(type(layer) not in (nn.Linear, Conv1D) for layer in layers) or (len(layers) > 1 and not pack):
        return None
    weights = [weight_of(layer) for layer in layers]
    return product_of(weights[0] if len(weights) == 1 else torch.cat(weights), bias, pack=pack)


def _is_packed(product: Product | NativeProduct) -> bool:
    return isinstance(product, NativeProduct) or product.is_packed


def _joined_bias(layers: Sequence[Any]) -> Tensor | None:
    """Return the layers' biases side by side, or None if there are none."""
    biases = [layer.bias for layer in layers]
    known: list[Tensor] = [bias for bias in biases if bias is not None]
    if not known:
        return None
    if len(biases) == 1:
        return known[0].detach()
    return torch.cat(
        [
            known[0].new_zeros(widths_of(layer)[1]) if bias is None else bias.detach()
            for layer, bias in zip(layers, biases, strict=True)
        ]
    )


def _own_low_rank(modules: Sequence[nn.Module]) -> list[LowRank | None]:
    """Return what LoRA layers in the model itself add."""
    return [
        low_rank_of(module, weight_of(module.linear).dtype) if isinstance(module, LoraLinear) else None
        for module in modules
    ]
