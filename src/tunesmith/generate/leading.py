"""The greatest of many numbers in order, without sorting them all.

A row of logits is seen as blocks of `_BLOCK` numbers. The blocks with the greatest maxima hold everything that is
greater than the least of these maxima, so sorting them alone gives the beginning of the whole row's order, exactly.
Equal numbers are ordered by their place, which makes the order the same whichever way it was found.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

#: Numbers in a block. A block's members lie far apart: tokens with ids close to each other are often likely together.
_BLOCK = 32


@dataclass(frozen=True, slots=True)
class Leading:
    """The beginning of each row's descending order.

    Attributes:
        values: (rows, n) float32, descending.
        ids: (rows, n) int64, their places in the row; equal values have ascending ids.
        certain: (rows,) int64, how many of them are surely the first of the whole row.
        is_whole: (rows,) bool, whether nothing else in the row is above minus infinity.
    """

    values: Tensor
    ids: Tensor
    certain: Tensor
    is_whole: Tensor


def leading(rows: Tensor, blocks: int | None) -> Leading:
    """Return the beginning of the order of each row of `rows` (rows, V), float32.

    Args:
        rows: the numbers; none of them NaN, or the row's order means nothing.
        blocks: how many blocks to sort, at least one more than the numbers that are wanted; None sorts all.
    """
    count, size = rows.shape
    width = size // _BLOCK
    if blocks is None or 2 * blocks >= width:
        ids = torch.arange(size, device=rows.device).expand(count, size)
        values, bound = rows, torch.full((count,), -torch.inf, device=rows.device)
    else:
        maxima = rows[:, : width * _BLOCK].view(count, _BLOCK, width).amax(1)
        found = maxima.topk(blocks, dim=1, sorted=False)
        bound = found.values.amin(1)
        # In ascending order, so that a stable sort leaves equal values in the order of their ids.
        members = torch.arange(_BLOCK, device=rows.device)[:, None] * width
        inside = (found.indices.sort(1).values[:, None, :] + members).flatten(1)
        behind = torch.arange(width * _BLOCK, size, device=rows.device).expand(count, -1)
        ids = torch.cat([inside, behind], 1)
        values = rows.gather(1, ids)
    values, ids = _descending(values, ids)
    return Leading(values, ids, (values > bound[:, None]).sum(1), bound == -torch.inf)


def _descending(values: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Sort each row of values (rows, n) downwards, equal ones by ascending `ids`, which ascend already."""
    if values.device.type != "cpu":
        values, order = values.sort(dim=1, descending=True, stable=True)
        return values, ids.gather(1, order)
    # NumPy sorts integers several times faster than PyTorch sorts pairs, so a pair becomes one integer: the float's
    # bits, turned so that they ascend while the float descends, above the id. Adding 0 makes -0 the 0 that it equals.
    bits = (values.numpy() + np.float32(0)).view(np.int32)
    keys = ~(bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))).astype(np.int64) << 32
    keys |= ids.numpy()
    keys.sort(axis=1)
    bits = ~(keys >> 32).astype(np.int32)
    bits ^= (bits >> 31) & np.int32(0x7FFFFFFF)
    return torch.from_numpy(bits.view(np.float32)), torch.from_numpy(keys & 0xFFFFFFFF)
