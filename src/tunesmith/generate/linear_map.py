"""Frozen linear layers as decoding computes them: those of one input together, their weights laid out for it.

A decoding step multiplies few rows with every weight there is, so reading the weights is what it costs. oneDNN reads
them faster from a layout of its own ("packed"), which is otherwise made again at each product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunesmith.models.adapters.frozen import weight_of, widths_of
from tunesmith.models.adapters.lora_layer import LoraLinear
from tunesmith.models.adapters.served import LowRank, ServedAdapter, low_rank_of

#: Rows that oneDNN chooses a layout for; products of 1 to 256 rows were all as fast with this one.
_TYPICAL_ROWS = 32


@dataclass(frozen=True, slots=True)
class AdapterRows:
    """Rows `start` to `end` (exclusive) of a flat batch go through `adapter`."""

    start: int
    end: int
    adapter: ServedAdapter


class Product:
    """`x W^T + b` with a frozen W (out, in), packed where the processor gains by it.

    Args:
        weight: W; what is made of it is a copy, unless it stays as it is.
        bias: b (out,), or None.
        pack: whether a packed copy may be made.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, pack: bool) -> None:
        self.is_packed = pack and can_pack(weight)
        self.is_copy = self.is_packed
        self.bias = bias
        self._weight = (
            torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _TYPICAL_ROWS)
            if self.is_packed
            else weight.detach()
        )

    def __call__(self, x: Tensor, activation: str = "none") -> Tensor:
        """Map (M, in) to (M, out); oneDNN's `activation` ("swish", ...) only if it is packed."""
        if self.is_packed:
            out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self.bias, activation, [], "")
            return out
        return nn.functional.linear(x, self._weight, self.bias)

    def combined(self, x: Tensor, other: Tensor, operation: str) -> Tensor:
        """Return the product combined with `other` (M, out) by oneDNN's "add" or "mul"; only if it is packed."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self._weight, self.bias, operation)
        return out

    def weight(self) -> Tensor:
        """Return W (out, in)."""
        return self._weight.to_dense() if self.is_packed else self._weight


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN multiplies faster with a packed copy of this weight."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


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
        self._own = _own_low_rank(self._modules, self._widths)
        #: Whether oneDNN may go on with the product's result, where nothing has to be added to it before.
        self.may_fuse = True
        self._low_ranks: WeakKeyDictionary[ServedAdapter, LowRank | None] = WeakKeyDictionary()

    @property
    def product(self) -> Product | None:
        """The one product, or None where the modules are called as they are."""
        return self._product

    def weight(self, name: str) -> Tensor:
        """Return the weight (out, in) of one of the layers."""
        assert self._product is not None
        index = self.names.index(name)
        start = sum(self._widths[:index])
        return self._product.weight()[start : start + self._widths[index]]

    def is_bare(self, rows: Sequence[AdapterRows]) -> bool:
        """Whether one packed product is all, so that oneDNN may go on with its result."""
        return (
            self.may_fuse and not rows and self._own is None and self._product is not None and self._product.is_packed
        )

    def __call__(self, x: Tensor, rows: Sequence[AdapterRows] = ()) -> Tensor:
        """Map (M, in) to (M, outputs of all layers side by side)."""
        if self._product is None:
            parts = [forward(x) for forward in self._originals]
            out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        else:
            out = self._product(x)
        if self._own is not None:
            _apply(out, x, self._own, self._bias)
        for part in rows:
            low = self._low_rank_of(part.adapter)
            if low is not None:
                _apply_to_rows(out, x, low, self._bias, part)
        return out

    def added_to(self, residual: Tensor, x: Tensor, rows: Sequence[AdapterRows] = ()) -> Tensor:
        """Return `residual + self(x)`."""
        if self.is_bare(rows):
            assert self._product is not None
            return self._product.combined(x, residual, "add")
        return self(x, rows).add_(residual)

    def _low_rank_of(self, adapter: ServedAdapter) -> LowRank | None:
        """Return an adapter's part in these layers: images side by side, and B in blocks."""
        if adapter not in self._low_ranks:
            parts = [adapter.layers.get(name) for name in self.names]
            self._low_ranks[adapter] = _side_by_side(parts, self._widths)
        return self._low_ranks[adapter]


def original_forward(module: nn.Module) -> Callable[..., Any]:
    """Return a module's own way of computing, whatever took over its calls (see `generate.exchange`)."""
    current: Callable[..., Any] = module.forward
    return getattr(current, "original", current)


def _frozen(module: nn.Module) -> Any:
    return module.linear if isinstance(module, LoraLinear) else module


def _joined(layers: Sequence[Any], bias: Tensor | None, *, pack: bool) -> Product | None:
    """Return one product for all layers, or None if one of them isn't a plain linear one."""
    if any(type(layer) not in (nn.Linear, Conv1D) for layer in layers) or (len(layers) > 1 and not pack):
        return None
    weights = [weight_of(layer) for layer in layers]
    if len(weights) == 1:
        return Product(weights[0], bias, pack=pack)
    joined = Product(torch.cat(weights), bias, pack=pack)
    joined.is_copy = True
    return joined


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


def _own_low_rank(modules: Sequence[nn.Module], widths: Sequence[int]) -> LowRank | None:
    """Return what LoRA layers in the model itself add, or None if there are none."""
    parts = [
        low_rank_of(module, weight_of(module.linear).dtype) if isinstance(module, LoraLinear) else None
        for module in modules
    ]
    return _side_by_side(parts, widths)


def _side_by_side(parts: Sequence[LowRank | None], widths: Sequence[int]) -> LowRank | None:
    """Join low-rank maps of one input: A stacked, B in blocks, DoRA's factors one after the other."""
    known = [part for part in parts if part is not None]
    if not known:
        return None
    if len(parts) == 1:
        return known[0]
    like = known[0].b
    b = like.new_zeros(sum(widths), sum(part.a.shape[0] for part in known))
    factors = like.new_ones(sum(widths)) if any(part.factors is not None for part in known) else None
    row = column = 0
    for part, width in zip(parts, widths, strict=True):
        if part is not None:
            rank = part.a.shape[0]
            b[row : row + width, column : column + rank] = part.b
            column += rank
            if part.factors is not None and factors is not None:
                factors[row : row + width] = part.factors
        row += width
    return LowRank(torch.cat([part.a for part in known]), b, factors)


def _apply_to_rows(out: Tensor, x: Tensor, low: LowRank, bias: Tensor | None, part: AdapterRows) -> None:
    """Add an adapter's map to some rows, in place."""
    own, inputs = out[part.start : part.end], x[part.start : part.end]
    if len(own) > 1:
        _apply(own, inputs, low, bias)
        return
    # CPUs multiply a single row by another kernel, whose sums round differently from those of any larger batch.
    twice = own.repeat(2, 1)
    _apply(twice, inputs.expand(2, -1), low, bias)
    own.copy_(twice[:1])


def _apply(out: Tensor, x: Tensor, low: LowRank, bias: Tensor | None) -> None:
    """Turn `W x + bias` into `g (W x + B A x) + bias`, in place; without DoRA, g is 1."""
    image = x @ low.a.t()
    if low.factors is None:
        out.addmm_(image, low.b.t())
        return
    if bias is not None:
        out.sub_(bias)
    out.addmm_(image, low.b.t()).mul_(low.factors)
    if bias is not None:
        out.add_(bias)
