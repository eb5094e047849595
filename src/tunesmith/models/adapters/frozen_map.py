"""What stays fixed in an adapted layer, as training computes it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from tunesmith.models.adapters.frozen import FrozenLinear, weight_of
from tunesmith.models.adapters.panels import Panels


@dataclass(frozen=True)
class FrozenMap:
    """`x (W - scale B0 A0)^T`: what stays fixed in training, and its gradient by x.

    `removed` are A0 (rank, in) and B0 (out, rank), the part of W that a trained pair began as; None: nothing. `panels`
    are W as the kernels multiply with it; None: PyTorch does.
    """

    linear: FrozenLinear
    removed: tuple[Tensor, Tensor] | None
    scale: float
    panels: Panels | None = None

    def map(self, x: Tensor, *, bias: bool) -> Tensor:
        """Map (M, in) to (M, out)."""
        out = nn.functional.linear(x, weight_of(self.linear), self.linear.bias if bias else None)
        if self.removed is not None:
            a, b = (matrix.to(x.dtype) for matrix in self.removed)
            out.addmm_(x @ a.t(), b.t(), alpha=-self.scale)
        return out

    def map_with(self, x: Tensor, low: Tensor, b: Tensor, scale: float) -> Tensor:
        """Return `map(x, bias=True) + scale low b^T` for low (M, rank) and b (out, rank) in any number format."""
        if self.panels is not None and self.removed is None and x.dtype == self.panels.dtype:
            return self.panels.map(x, low, (scale * b).to(x.dtype))
        return self.map(x, bias=True).addmm_(low, b.to(x.dtype).t(), alpha=scale)

    def pull(self, grad: Tensor) -> Tensor:
        """Map the output's gradient (M, out) to the input's (M, in)."""
        grad_x = grad @ weight_of(self.linear)
        if self.removed is not None:
            a, b = (matrix.to(grad.dtype) for matrix in self.removed)
            grad_x.addmm_(grad @ b, a, alpha=-self.scale)
        return grad_x

    def pull_with(self, grad: Tensor, low: Tensor, a: Tensor, scale: float) -> Tensor:
        """Return `pull(grad) + scale low a` for low (M, rank) and a (rank, in) in any number format."""
        if self.panels is not None and self.removed is None and grad.dtype == self.panels.dtype:
            return self.panels.pull(grad, low, (scale * a).to(grad.dtype))
        return self.pull(grad).addmm_(low, a.to(grad.dtype), alpha=scale)
