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
        values: (rows, n) float32, descending; minus infinity where a row has fewer.
        ids: (rows, n) int64, their places in the row; equal values have ascending ids.
        counts: (rows,) int64, how many of them there are.
        is_whole: (rows,) bool, whether nothing else in the row is above minus infinity.
        peaks: (rows,) float32, each row's greatest, also where there are too many equal ones to put any in order.
    """

    values: Tensor
    ids: Tensor
    counts: Tensor
    is_whole: Tensor
    peaks: Tensor


def leading(rows: Tensor, blocks: int | None) -> Leading:
    """Return the beginning of the order of each row of `rows` (rows, V), float32.

    Args:
        rows: the numbers; a row that holds NaN gives anything.
        blocks: how many blocks to look into, which gives one number less at least, unless there are equal ones; None
            sorts all.
    """
    count, size = rows.shape
    width = size // _BLOCK
    if blocks is None or 2 * blocks >= width:
        values, ids = _descending(rows, torch.arange(size, device=rows.device).expand(count, size))
        counts = (values > -torch.inf).sum(1)
        return Leading(values, ids, counts, torch.ones_like(counts, dtype=torch.bool), rows.amax(1))
    maxima = rows[:, : width * _BLOCK].view(count, _BLOCK, width).amax(1)
    found = maxima.topk(blocks, dim=1, sorted=False)
    bound = found.values.amin(1)
    # In ascending order, so that a stable sort leaves equal values in the order of their ids.
    members = torch.arange(_BLOCK, device=rows.device)[:, None] * width
    inside = (found.indices.sort(1).values[:, None, :] + members).flatten(1)
    behind = torch.arange(width * _BLOCK, size, device=rows.device).expand(count, -1)
    ids = torch.cat([inside, behind], 1)
    return leading_above(rows.gather(1, ids), ids, bound)


def leading_above(values: Tensor, ids: Tensor, bounds: Tensor) -> Leading:
    """Return the order of what is above a bound in each row, where nothing else in the row is above it.

    Args:
        values: (rows, n) float32, the greatest of each row among them.
        ids: (rows, n) their places in the row, ascending.
        bounds: (rows,) float32.
    """
    is_leading = values > bounds[:, None]
    counts = is_leading.sum(1)
    ordered, places = _descending(*_packed(values, ids, is_leading, counts))
    return Leading(ordered, places, counts, bounds == -torch.inf, values.amax(1))


def _packed(values: Tensor, ids: Tensor, is_kept: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Keep some of each row's values and ids (rows, n), in order; rows are filled up with minus infinity."""
    rows, columns = is_kept.nonzero(as_tuple=True)
    places = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    longest = max(1, int(counts.max()))
    packed = values.new_full((len(values), longest), -torch.inf)
    packed[rows, places] = values[rows, columns]
    packed_ids = ids.new_zeros(packed.shape)
    packed_ids[rows, places] = ids[rows, columns]
    return packed, packed_ids


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
