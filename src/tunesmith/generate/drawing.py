"""Drawing a token of each row: temperature, top-k, top-p and min-p, then one look into the cumulative distribution.

Tokens are ordered by falling probability, equal ones by their id. A uniform number u takes the first token at which the
cumulative probability is above u. The order is only worked out as far as a row needs it; how far never changes the
token, nor do the other rows.

Nucleus sampling: Holtzman et al. 2020 (arXiv:1904.09751). Min-p: Nguyen et al. 2024 (arXiv:2407.01082).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from tunesmith.generate.leading import Leading, leading, leading_above
from tunesmith.generate.reach import LEAST_TEMPERATURE, bounds

#: Blocks of tokens that are put in order at first (see `leading`).
_BLOCKS = 64


class Wishes(NamedTuple):
    """How each row is drawn, float64 (rows,) each.

    Attributes:
        temperature: above 0.
        top_k: most tokens to draw from; 0 for all.
        top_p: joint mass to draw from, of what top-k leaves.
        min_p: least probability to draw from, as a share of the likeliest token's.
        uniform: from 0 up to, but not, 1.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    uniform: Tensor

    @classmethod
    def of(cls, rows: list[tuple[float, float, float, float, float]], device: torch.device) -> Wishes:
        """Gather rows of (temperature, top_k, top_p, min_p, uniform)."""
        return cls(*torch.tensor(rows, dtype=torch.float64, device=device).unbind(1))

    def at(self, rows: Tensor) -> Wishes:
        """Return those of some rows."""
        return Wishes(*(column[rows] for column in self))


def draw(logits: Tensor, wishes: Wishes) -> list[int]:
    """Return a token id for each row of logits (rows, V), float32; -1 where the logits hold NaN or plus infinity.

    A row of minus infinities alone gives -1 as well.
    """
    wishes = wishes._replace(top_k=wishes.top_k.where(wishes.top_k < logits.shape[1], 0.0))
    order = leading(logits, _BLOCKS)
    peaks = order.peaks
    mass = weight_sums(logits, peaks, wishes.temperature)
    is_finite = mass.isfinite()
    ids, is_certain = _pick(order, mass, wishes)
    for is_guess in (True, False):
        rows = (is_finite & ~is_certain).nonzero()[:, 0]
        if not len(rows):
            break
        unsure, wished = logits[rows], wishes.at(rows)
        reach = bounds(unsure, peaks[rows], wished) if is_guess else peaks.new_full((len(rows),), -torch.inf)
        places = torch.arange(logits.shape[1], device=logits.device).expand(unsure.shape)
        ids[rows], is_certain[rows] = _pick(leading_above(unsure, places, reach), mass[rows], wished)
    return [int(one) for one in ids.where(is_finite, -1).tolist()]


def weight_sums(logits: Tensor, peaks: Tensor, temperature: Tensor) -> Tensor:
    """Return the sum over each row of `exp((logit - peak) / temperature)`.

    Args:
        logits: (rows, V) float32.
        peaks: (rows,) each row's greatest.
        temperature: (rows,) float64.

    Returns:
        (rows,) float64; NaN where a logit is NaN or plus infinity, or all are minus infinity.
    """
    scale = temperature.clamp(min=LEAST_TEMPERATURE).reciprocal().float()
    if logits.device.type != "cpu":
        return (logits - peaks[:, None]).mul_(scale[:, None]).exp_().sum(1, dtype=torch.float64)
    # Row by row, what is needed in between stays in the processor's cache; NumPy's float32 maths is the quicker one.
    sums, room = np.empty(len(logits)), np.empty(logits.shape[1], dtype=np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        for place, (row, peak, factor) in enumerate(zip(logits.numpy(), peaks.numpy(), scale.numpy(), strict=True)):
            np.subtract(row, peak, out=room)
            np.exp(np.multiply(room, factor, out=room), out=room)
            sums[place] = room.sum()
    return torch.from_numpy(sums)


def _pick(order: Leading, mass: Tensor, wishes: Wishes) -> tuple[Tensor, Tensor]:
    """Draw from the beginning of the order.

    Args:
        order: the first n tokens of each row, of which `counts` are given.
        mass: (rows,) sum of all weights, where the likeliest token weighs 1.
        wishes: what is drawn from.

    Returns:
        The ids (rows,), and whether the beginning was long enough to know them (rows,).
    """
    count = order.values.shape[1]
    temperature = wishes.temperature.clamp(min=LEAST_TEMPERATURE)[:, None]
    weights = ((order.values - order.peaks[:, None]).double() / temperature).exp_()
    places = torch.arange(count, device=weights.device)
    weights.masked_fill_(places >= order.counts[:, None], 0.0)
    sums = weights.cumsum(1)
    whole, certain = order.is_whole, order.counts.double()

    # How many tokens each filter keeps; without bound where that is more than what is certain.
    by_k = wishes.top_k.where(wishes.top_k > 0, torch.inf)
    by_k = by_k.where((by_k < certain) | ~whole, torch.inf)
    kept_by_k = _at(sums, by_k.clamp(max=count) - 1)
    left = kept_by_k.where(by_k.isfinite(), mass)
    before = pad(sums[:, :-1], (1, 0))
    by_p = (before < (wishes.top_p * left)[:, None]).sum(1).clamp(min=1).double()
    by_p = by_p.where((wishes.top_p < 1) & (by_p <= certain), torch.inf)
    by_min = (weights >= wishes.min_p[:, None]).sum(1).double()
    by_min = by_min.where((wishes.min_p > 0) & ((by_min < certain) | whole), torch.inf)
    kept = torch.minimum(torch.minimum(by_k, by_p), by_min)

    is_cut = kept <= certain
    target = wishes.uniform * _at(sums, kept.clamp(1, count) - 1).where(is_cut, mass)
    place = torch.searchsorted(sums, target[:, None], right=True)[:, 0].double()
    # Rounding may put the target behind the last token; a token without weight is never meant.
    last = (sums < sums[:, -1:]).sum(1).double()
    reached = torch.minimum(torch.minimum(place, kept - 1), last).clamp(min=0)
    is_open = (wishes.top_k == 0) & (wishes.top_p >= 1) & (wishes.min_p == 0)
    is_certain = whole | (is_cut & ((by_k <= certain) | by_k.isinf())) | (is_open & (place < certain))
    return _at(order.ids, reached), is_certain


def _at(values: Tensor, places: Tensor) -> Tensor:
    """Return each row's value (rows, n) at its place (rows,)."""
    return values.gather(1, places.long()[:, None])[:, 0]
