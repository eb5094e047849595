"""Rounding to bfloat16 at random, so that small steps aren't lost: what is lost in one step is won in another."""

from __future__ import annotations

import torch
from torch import Tensor

#: Bits of a float32 that bfloat16 doesn't have.
_LOST_BITS = 16


def round_stochastically(values: Tensor, generator: torch.Generator) -> Tensor:
    """Return float32 `values` as bfloat16: each becomes one of its two neighbours, the nearer one more often.

    The mean over many roundings is the value itself (Zamirai et al. 2020, arXiv:2010.06192, section 3): a random number
    is added to the bits that bfloat16 lacks, which are then cut off.

    Args:
        values: float32, of any shape.
        generator: on the device of `values`.
    """
    bits = values.view(torch.int32)
    noise = torch.randint(1 << _LOST_BITS, values.shape, dtype=torch.int32, device=values.device, generator=generator)
    rounded = (bits + noise).bitwise_and_(-1 << _LOST_BITS).view(torch.float32)
    # Infinity's bits plus noise would be no number.
    return torch.where(values.isfinite(), rounded, values).to(torch.bfloat16)
