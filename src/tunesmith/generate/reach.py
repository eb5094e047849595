"""How far down its order a row must be known before a token can be drawn from it, guessed in one pass.

The guess is a bound on logits. It only has to be low enough, and not much lower: what is above it is sorted, and if it
wasn't low enough, all is. So it never changes what is drawn.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

#: Keeps a quotient finite; a temperature this low takes the likeliest token.
LEAST_TEMPERATURE = 1e-30
#: Bins of weights: each holds logits of one of these parts of a temperature, down from the greatest.
_BINS = 512
_BINS_PER_TEMPERATURE = 16
#: More than rounding can take off a share.
_MARGIN = 1e-5


def bounds(logits: Tensor, peaks: Tensor, wishes: tuple[Tensor, ...]) -> Tensor:
    """Return what a row's logits must be above for it to matter how they are ordered.

    Args:
        logits: (rows, V) float32.
        peaks: (rows,) each row's greatest, finite.
        wishes: `Wishes`: temperature, top_k, top_p, min_p, uniform, (rows,) each.

    Returns:
        (rows,) float32; minus infinity on devices that sort quickly.
    """
    if logits.device.type != "cpu":
        return torch.full_like(peaks, -torch.inf)
    columns = [column.tolist() for column in wishes]
    found = [
        _bound(row, peak, *wish)
        for row, peak, wish in zip(logits.numpy(), peaks.tolist(), zip(*columns, strict=True), strict=True)
    ]
    return torch.tensor(found, dtype=torch.float32)


def _bound(row: npt.NDArray[np.float32], peak: float, temperature: float, *filters: float) -> float:
    top_k, top_p, min_p, uniform = filters
    if top_k:
        place = len(row) - 1 - int(top_k)
        return float(np.partition(row, place)[place])
    by_min_p = peak + temperature * (math.log(min_p) - _MARGIN) if min_p else -math.inf
    if top_p < 1 or not min_p:
        share = (top_p if top_p < 1 else uniform) + _MARGIN
        return max(by_min_p, _bound_of_share(row, peak, temperature, share))
    return by_min_p


def _bound_of_share(row: npt.NDArray[np.float32], peak: float, temperature: float, share: float) -> float:
    """Return a bound that this share of the probability is above; minus infinity if the bins don't reach so far."""
    depths = (row - np.float32(peak)) * np.float32(-1 / max(temperature, LEAST_TEMPERATURE))
    weights = np.exp(-depths)
    places = np.minimum(depths * np.float32(_BINS_PER_TEMPERATURE), np.float32(_BINS - 1)).astype(np.int64)
    sums = np.bincount(places, weights, _BINS).cumsum()
    last = int(np.searchsorted(sums, share * sums[-1]))
    return peak - temperature * (last + 1) / _BINS_PER_TEMPERATURE if last < _BINS - 1 else -math.inf
