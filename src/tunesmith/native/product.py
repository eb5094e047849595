"""Products with a frozen weight in the kernels' layout."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tunesmith.native.calls import (
    ADDED,
    GATED,
    PANEL,
    STORED,
    UPDATED,
    WIDE,
    FurtherArguments,
    Kernels,
    ProductArguments,
)
from tunesmith.native.memory import zeros


class NativeProduct:
    """`x W^T + b` for rows x (M, in) in bf16. One thread at a time may use it.

    A row's result doesn't depend on the rows beside it, and what follows a product is rounded as if it came apart.

    Args:
        kernels: the compiled functions.
        weight: W (out, in), `in` even; it is copied into panels of 32 outputs, [out / 32][in / 2][32][2].
        bias: b (out,), or None.
    """

    def __init__(self, kernels: Kernels, weight: Tensor, bias: Tensor | None) -> None:
        self.kernels = kernels
        self.outputs, self.depth = weight.shape
        self._panels = _packed(weight.detach())
        self._bias = None if bias is None else bias.detach().float().contiguous()
        self._arguments = ProductArguments()
        self._one_further = FurtherArguments()  # made once: training calls `together` a thousand times a step
        self.describe(self._arguments)

    @property
    def pointer(self) -> int:
        """Where the panels begin."""
        return self._panels.data_ptr()

    def describe(self, arguments: ProductArguments, second: NativeProduct | None = None) -> None:
        """Fill in what is the same for all rows, for a gated product with a second weight."""
        arguments.weight, arguments.depth, arguments.outputs = self.pointer, self.depth, self.outputs
        arguments.bias = None if self._bias is None else self._bias.data_ptr()
        if second is not None:
            arguments.second, arguments.second_bias = second._arguments.weight, second._arguments.bias

    def __call__(self, x: Tensor, further: Sequence[FurtherRows] = ()) -> Tensor:
        """Map (M, in) to (M, out), with further products of some rows, in their order, before anything is rounded."""
        out = x.new_empty(len(x), self.outputs)
        if not further:
            return self._computed(STORED, x, out)
        described = (FurtherArguments * len(further))(*(rows.arguments() for rows in further))
        return self._computed(STORED, x, out, further=ctypes.addressof(described), further_count=len(further))

    def together(self, x: Tensor, further: NativeProduct, further_x: Tensor, into: Tensor | None = None) -> Tensor:
        """Return `self(x) + further(further_x)`, rounded once, added to `into` in place if there is one."""
        one = self._one_further
        one.x, one.x_stride, one.end = further_x.data_ptr(), further_x.stride(0), len(x)
        one.weight, one.depth = further.pointer, further.depth
        kind, out = (STORED, x.new_empty(len(x), self.outputs)) if into is None else (UPDATED, into)
        return self._computed(kind, x, out, into, ctypes.addressof(one), 1)

    def write(self, x: Tensor, out: Tensor) -> None:
        """Write the product of x (M, in) to `out` (M, out)."""
        self._computed(STORED, x, out)

    def wide(self, x: Tensor) -> Tensor:
        """Map (M, in) to (M, out) in float32."""
        return self._computed(WIDE, x, torch.empty(len(x), self.outputs))

    def added_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Return `residual + self(x)`."""
        return self._computed(ADDED, x, torch.empty_like(residual), residual)

    def update(self, out: Tensor, x: Tensor) -> None:
        """Add the product to `out` (M, out) in place, rounded once."""
        self._computed(UPDATED, x, out, out)

    def gated(self, x: Tensor, up: NativeProduct) -> Tensor:
        """Return `silu(self(x)) * up(x)`."""
        self.describe(self._arguments, up)
        return self._computed(GATED, x, x.new_empty(len(x), self.outputs))

    def weight(self) -> Tensor:
        """Return W (out, in)."""
        return self._panels.permute(0, 2, 1, 3).reshape(-1, self.depth)[: self.outputs]

    def _computed(
        self,
        kind: int,
        x: Tensor,
        out: Tensor,
        other: Tensor | None = None,
        further: int | None = None,
        further_count: int = 0,
    ) -> Tensor:
        if x.stride(1) != 1:
            x = x.contiguous()
        arguments = self._arguments
        arguments.kind, arguments.rows = kind, len(x)
        arguments.x, arguments.x_stride = x.data_ptr(), x.stride(0)
        arguments.out, arguments.out_stride = out.data_ptr(), out.stride(0)
        if other is not None:
            arguments.other, arguments.other_stride = other.data_ptr(), other.stride(0)
        arguments.further, arguments.further_count = further, further_count
        self.kernels.product(arguments)
        return out


@dataclass(frozen=True, slots=True)
class FurtherRows:
    """Rows `first` to `end` (exclusive) of a product, to which a further one of `x` (end - first, rank) is added."""

    first: int
    end: int
    product: NativeProduct
    x: Tensor

    def arguments(self) -> FurtherArguments:
        """Return what the kernels need of it."""
        return FurtherArguments(
            x=self.x.data_ptr(),
            x_stride=self.x.stride(0),
            weight=self.product.pointer,
            first=self.first,
            end=self.end,
            depth=self.product.depth,
        )


def _packed(weight: Tensor) -> Tensor:
    """Return (out, in) as (panels, in / 2, 32, 2), with zeros for outputs that aren't there."""
    outputs, depth = weight.shape
    panels = -(-outputs // PANEL)
    if panels * PANEL != outputs:
        weight = torch.cat([weight, weight.new_zeros(panels * PANEL - outputs, depth)])
    laid_out = weight.view(panels, PANEL, depth // 2, 2).permute(0, 2, 1, 3)
    return zeros(tuple(laid_out.shape), weight.dtype).copy_(laid_out)
