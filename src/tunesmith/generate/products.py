"""Products with frozen weights, laid out for few rows.

A decoding step multiplies few rows with every weight there is, so reading the weights is what it costs. Tunesmith's own
kernels read them from panels (see `native`); where there are none, oneDNN reads them faster from a layout of
its own ("packed"), which is otherwise made again at each product.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tunesmith.native.calls import kernels_for
from tunesmith.native.product import NativeProduct

#: Rows that oneDNN chooses a layout for; products of 1 to 256 rows were all as fast with this one.
_TYPICAL_ROWS = 32


class Product:
    """`x W^T + b` with a frozen W (out, in), packed by oneDNN where the processor gains by it.

    Args:
        weight: W; what is made of it is a copy, unless it stays as it is.
        bias: b (out,), or None.
        pack: whether a packed copy may be made.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, pack: bool) -> None:
        self.is_packed = pack and can_pack(weight)
        self._bias = bias
        self._weight = (
            torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _TYPICAL_ROWS)
            if self.is_packed
            else weight.detach()
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Map (M, in) to (M, out)."""
        if self.is_packed:
            return self._pointwise(x, "none")
        return nn.functional.linear(x, self._weight, self._bias)

    def wide(self, x: Tensor) -> Tensor:
        """Map (M, in) to (M, out) in at least float32."""
        out = self(x)
        return out.to(torch.promote_types(out.dtype, torch.float32))

    def added_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Return `residual + self(x)`; only if it is packed."""
        return self._combined(x, residual, "add")

    def gated(self, x: Tensor, up: Product) -> Tensor:
        """Return `silu(self(x)) * up(x)`; only if both are packed."""
        return up._combined(x, self._pointwise(x, "swish"), "mul")

    def weight(self) -> Tensor:
        """Return W (out, in)."""
        return self._weight.to_dense() if self.is_packed else self._weight

    def _pointwise(self, x: Tensor, activation: str) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, activation, [], "")
        return out

    def _combined(self, x: Tensor, other: Tensor, operation: str) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self._weight, self._bias, operation)
        return out


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN multiplies faster with a packed copy of this weight."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


def product_of(weight: Tensor, bias: Tensor | None, *, pack: bool) -> Product | NativeProduct:
    """Return the fastest product there is for a weight (out, in).

    Args:
        weight: W.
        bias: b (out,), or None.
        pack: whether a copy may be made.
    """
    kernels = kernels_for(weight) if pack and weight.shape[1] % 2 == 0 else None
    return Product(weight, bias, pack=pack) if kernels is None else NativeProduct(kernels, weight, bias)
