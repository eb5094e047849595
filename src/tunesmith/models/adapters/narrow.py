"""Gradients of an adapter's narrow matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from tunesmith.native.calls import kernels_for


def outer_sum(narrow: Tensor, wide: Tensor, scale: float) -> Tensor:
    """Return `scale narrow^T wide` (r, N), a sum of outer products over rows: narrow (M, r), wide (M, N).

    The result is in at least float32; on the way to it, only the kernels in C don't round to the factors' format.
    """
    kernels = kernels_for(wide) if narrow.dtype == wide.dtype else None
    if kernels is not None:
        return kernels.sum_outer(narrow, wide, scale)
    # The narrow factor stands first: a short, wide product is faster than a tall, narrow one.
    return (narrow.t() @ wide).to(torch.promote_types(wide.dtype, torch.float32)).mul_(scale)
