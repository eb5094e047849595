"""What adapters add to a linear map: two narrow products beside the wide one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from tunesmith.models.adapters.served import LowRank
from tunesmith.native.calls import kernels_for
from tunesmith.native.product import FurtherRows, NativeProduct


class NarrowMap:
    """Turns `W x + bias` into `g (W x + B A x) + bias`; without DoRA, g is 1.

    Args:
        low: A, B and g.
        bias: bias (out,), or None.
    """

    def __init__(self, low: LowRank, bias: Tensor | None) -> None:
        self._low, self._bias = low, bias
        kernels = kernels_for(low.a) if low.factors is None and low.a.shape[1] % 2 == 0 else None
        #: A and B in the kernels' layout, if they compute with them.
        self.native: tuple[NativeProduct, NativeProduct] | None = None
        if kernels is not None:
            a, b = even(low)
            self.native = NativeProduct(kernels, a, None), NativeProduct(kernels, b, None)

    def further(self, x: Tensor, first: int, end: int) -> FurtherRows:
        """Return what is added to rows `first` to `end` of the product of `x` (M, in); only if there is `native`."""
        assert self.native is not None
        narrow, wide = self.native
        return FurtherRows(first, end, wide, narrow(x[first:end]))

    def add_to(self, out: Tensor, x: Tensor) -> None:
        """Change the product `out` (M, out) of `x` (M, in) in place."""
        if self.native is not None:
            narrow, wide = self.native
            wide.update(out, narrow(x))
        elif len(x) > 1:
            self._add(out, x)
        else:
            # CPUs multiply a single row by another kernel, whose sums round differently from those of any larger batch.
            twice = out.repeat(2, 1)
            self._add(twice, x.expand(2, -1))
            out.copy_(twice[:1])

    def _add(self, out: Tensor, x: Tensor) -> None:
        low, bias = self._low, self._bias
        image = x @ low.a.t()
        if low.factors is None:
            out.addmm_(image, low.b.t())
            return
        if bias is not None:
            out.sub_(bias)
        out.addmm_(image, low.b.t()).mul_(low.factors)
        if bias is not None:
            out.add_(bias)


def even(low: LowRank) -> tuple[Tensor, Tensor]:
    """Return A and B; an odd rank gets a row of zeros, and a column."""
    odd = low.a.shape[0] % 2
    return functional.pad(low.a, (0, 0, 0, odd)), functional.pad(low.b, (0, odd))


def side_by_side(parts: Sequence[LowRank | None], widths: Sequence[int]) -> LowRank | None:
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
