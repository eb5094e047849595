"""Frozen weights as the kernels multiply with them, both ways: for outputs, and for the gradients of inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunesmith.models.adapters.frozen import weight_of
from tunesmith.native.calls import Kernels, kernels_for
from tunesmith.native.product import NativeProduct

#: Copies of each weight.
COPIES = 2


@dataclass(frozen=True, eq=False)
class Panels:
    """A frozen layer's `x W^T + b` and `g W`, with a narrow product added before anything is rounded.

    The layer's own weight stays as it is; these are copies.
    """

    kernels: Kernels
    forward: NativeProduct
    backward: NativeProduct
    #: The number format of everything.
    dtype = torch.bfloat16

    @classmethod
    def of(cls, linear: nn.Module) -> Panels | None:
        """Lay out a layer's weight, or return None if the kernels don't compute with it."""
        if type(linear) not in (nn.Linear, Conv1D):
            return None
        return cls.of_weight(weight_of(linear), linear.bias)  # type: ignore[arg-type]

    @classmethod
    def of_weight(cls, weight: Tensor, bias: Tensor | None) -> Panels | None:
        """Lay out a weight (out, in), or return None if the kernels don't compute with it."""
        kernels = kernels_for(weight)
        if kernels is None or any(size % 2 for size in weight.shape):
            return None
        return cls(kernels, NativeProduct(kernels, weight, bias), NativeProduct(kernels, weight.detach().t(), None))

    def map(self, x: Tensor, low: Tensor, b: Tensor) -> Tensor:
        """Return `x W^T + bias + low b^T` for x (M, in), low (M, rank) and b (out, rank)."""
        return _together(self, self.forward, x, low, b)

    def pull(self, grad: Tensor, low: Tensor, a: Tensor, into: Tensor | None = None) -> Tensor:
        """Return `grad W + low a` for grad (M, out), low (M, rank), a (rank, in); added to `into` if there is one."""
        return _together(self, self.backward, grad, low, a.t(), into)


def _together(
    panels: Panels, wide: NativeProduct, x: Tensor, low: Tensor, narrow: Tensor, into: Tensor | None = None
) -> Tensor:
    if narrow.shape[1] % 2 == 0:
        return wide.together(x, NativeProduct(panels.kernels, narrow, None), low, into)
    if into is None:
        into = wide(x)
    else:
        wide.update(into, x)
    return into.addmm_(low, narrow.t())
