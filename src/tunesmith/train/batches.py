"""Which rows form an optimiser step."""

from __future__ import annotations

import itertools
import math

import numpy as np

from tunesmith.train.mixing import Mixture
from tunesmith.train.settings import step_count

# Random numbers of one seed: epochs begin with their number, passes over general rows with this.
_REPLAY_STREAM = 2**33


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


def epoch_ends(rows: int, batch_size: int, epochs: float) -> frozenset[int]:
    """Return after which steps another pass over the rows is done, without the last step."""
    last = step_count(rows, batch_size, epochs)
    ends = (math.ceil(rows * epoch / batch_size) for epoch in range(1, math.ceil(epochs)))
    return frozenset(end for end in ends if end < last)


def with_replay(steps: list[list[int]], rows: int, replay_rows: int, share: float, seed: int) -> list[list[int]]:
    """Return the steps with general rows added, so that these are `share` of the rows of all steps so far.

    General rows are numbered behind the `rows` own ones. They are gone through pass by pass, each pass a fresh shuffle,
    whatever the epochs of the own rows. The same arguments give the same steps.
    """
    if not replay_rows or not share:
        return steps
    mixed, own, general = [], 0, 0
    order: list[int] = []
    for step in steps:
        own += len(step)
        wanted = round(own * share / (1.0 - share)) - general
        while len(order) < general + wanted:
            pass_number = len(order) // replay_rows
            order += np.random.default_rng([seed, _REPLAY_STREAM, pass_number]).permutation(replay_rows).tolist()
        mixed.append([*step, *(rows + number for number in order[general : general + wanted])])
        general += wanted
    return mixed
