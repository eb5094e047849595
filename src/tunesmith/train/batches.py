"""Which rows form an optimiser step."""

from __future__ import annotations

import itertools
import math

import numpy as np

from tunesmith.train.mixing import Mixture
from tunesmith.train.settings import step_count


def rows_of_steps(
    rows: int, batch_size: int, epochs: float, seed: int, mixture: Mixture | None = None
) -> list[list[int]]:
    """Return the row numbers of every optimiser step, in order.

    Each epoch is a fresh shuffle of all rows, or what a `mixture` of sources makes of them; the epochs follow one
    another without a gap, so only the last step may hold fewer rows. The same arguments give the same steps, whatever
    happened before: that is what resuming relies on.
    """
    steps = step_count(rows, batch_size, epochs)
    wanted = min(steps * batch_size, math.ceil(rows * epochs))
    order: list[int] = []
    for epoch in itertools.count():
        if len(order) >= wanted:
            break
        order += (
            mixture.epoch(epoch, seed) if mixture else np.random.default_rng([seed, epoch]).permutation(rows).tolist()
        )
    return [order[start : min(start + batch_size, wanted)] for start in range(0, wanted, batch_size)]
