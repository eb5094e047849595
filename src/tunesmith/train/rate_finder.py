"""The learning-rate range test: rising rates for some steps, and what the losses say about them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tunesmith.chat.renderer import Rendered
from tunesmith.learn.optimiser import Optimiser
from tunesmith.learn.randomness import random_state, restore_random_state
from tunesmith.models.adapters.adapter import ParameterGroup
from tunesmith.specs.tune import TuneSpec
from tunesmith.train.batches import rows_of_steps
from tunesmith.train.settings import numbers
from tunesmith.train.sft import Row
from tunesmith.train.stepping import Stepper

#: The rates rise in equal ratios over so many steps, from the usual rate / 100 to the usual rate x 100.
_STEPS, _REACH = 32, 100.0
_HIGHEST_RATE = 1.0
#: Measuring the rows without a gradient takes about a third of the time of the steps.
_MEASURING = 3
#: Memory of the running mean that smooths the losses.
_SMOOTHING = 0.7
#: The test ends when the smoothed loss has given back this share of what it had gained, or is this much too high.
_GIVEN_BACK, _TOO_HIGH = 0.5, 0.1
#: The chosen rate is this share of the one with the lowest loss: there, the steps are about to become too large.
_BELOW_LOWEST = 0.1


@dataclass(frozen=True, slots=True)
class RateSearch:
    """What the range test came to.

    Attributes:
        rate: the rate to train with, to two digits.
        rates: the rates that were tried, rising.
        losses: each step's loss as a share of what the same rows cost before the test.
        smoothed: their running mean.
        reason: why this rate, a whole sentence.
    """

    rate: float
    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "rate": self.rate,
            "rates": list(self.rates),
            "losses": list(self.losses),
            "smoothed": list(self.smoothed),
        }


def find_rate(
    stepper: Stepper,
    groups: Sequence[ParameterGroup],
    rows: Sequence[Row],
    spec: TuneSpec,
    usual_rate: float,
    on_progress: Callable[[int, int], None],
) -> RateSearch:
    """Try rising rates on the run's first steps (Smith 2015, arXiv:1506.01186, section 3.3) and choose one.

    A step's loss is taken as a share of what the same rows cost before: rows differ more than rates do. Afterwards
    weights and random state are as before, bit for bit; the optimiser is the test's own.

    Args:
        stepper: computes losses and gradients; the model is in training mode.
        groups: what is trained.
        rows: the training rows.
        spec: resolved but for the learning rate.
        usual_rate: what `auto` would take; the middle of what is tried.
        on_progress: told how many of how many steps are done.

    Raises:
        RunError: memory ran out (`out_of_memory`).
    """
    parameters = [parameter for group in groups for parameter in group.parameters]
    weights = [parameter.detach().clone() for parameter in parameters]
    random = random_state(stepper.device)
    try:
        rates, losses = _sweep(stepper, groups, _steps(rows, spec), spec, usual_rate, on_progress)
    finally:
        stepper.forget_gradients()
        with torch.no_grad():
            for parameter, weight in zip(parameters, weights, strict=True):
                parameter.copy_(weight)
        restore_random_state(random, stepper.device)
    return choose_rate(rates, losses, usual_rate)


def choose_rate(rates: Sequence[float], losses: Sequence[float], usual_rate: float) -> RateSearch:
    """Choose from a finished test: a tenth of the rate with the lowest smoothed loss.

    Args:
        rates: rising.
        losses: each step's loss as a share of what its rows cost before; the last may be infinite.
        usual_rate: what is taken when no rate lowered the loss.
    """
    smoothed = _smooth(losses)
    lowest = min(range(len(smoothed)), key=lambda step: smoothed[step], default=None)
    if lowest is None or smoothed[lowest] >= 1.0:
        reason = f"No rate lowered the loss, so the usual one is taken: {usual_rate:g}."
        return RateSearch(usual_rate, tuple(rates), tuple(losses), tuple(smoothed), reason)
    rate = float(f"{rates[lowest] * _BELOW_LOWEST:.2g}")
    reason = f"Of {len(rates)} rising rates {rates[lowest]:.2g} had the lowest loss; a tenth of it is taken: {rate:g}."
    return RateSearch(rate, tuple(rates), tuple(losses), tuple(smoothed), reason)


def _steps(rows: Sequence[Row], spec: TuneSpec) -> list[list[Rendered]]:
    """Return the sequences of the test's steps: those of the run's own, over again if it has fewer."""
    batch_size, epochs, _ = numbers(spec)
    steps = itertools.cycle(rows_of_steps(len(rows), batch_size, epochs, spec.seed))
    return [[sequence for row in step for sequence in rows[row]] for step in itertools.islice(steps, _STEPS)]


def _sweep(
    stepper: Stepper,
    groups: Sequence[ParameterGroup],
    steps: Sequence[Sequence[Rendered]],
    spec: TuneSpec,
    usual_rate: float,
    on_progress: Callable[[int, int], None],
) -> tuple[list[float], list[float]]:
    """Take the steps with rising rates until the loss diverges; return rates and losses."""
    once = {id(sequence): sequence for step in steps for sequence in step}
    first = len(steps) // _MEASURING
    before = stepper.mean_loss(
        list(once.values()), lambda done: on_progress(first * done // len(once), len(steps) + first)
    )
    cost = dict(zip(once, before.sequence_losses, strict=True))
    optimiser = Optimiser(groups, spec.optimisation.model_copy(update={"learning_rate": usual_rate}), len(steps))
    rates: list[float] = []
    losses: list[float] = []
    for index, sequences in enumerate(steps):
        rate = usual_rate * _REACH ** (2 * index / (len(steps) - 1) - 1)
        if rate > _HIGHEST_RATE:
            break
        computed = stepper.gradients(sequences, f"step {index + 1} of the search for a learning rate")
        expected = sum(cost[id(sequence)] for sequence in sequences) / computed.learnt_tokens
        losses.append(computed.loss / max(expected, 1e-9) if math.isfinite(computed.loss) else math.inf)
        rates.append(rate)
        on_progress(first + index + 1, first + len(steps))
        if _has_diverged(losses) or not math.isfinite(stepper.gradient_norm()):
            break
        optimiser.step(index, rate=rate)
    return rates, losses


def _has_diverged(losses: Sequence[float]) -> bool:
    smoothed = _smooth(losses)
    gained = 1.0 - min(1.0, *smoothed)
    return not math.isfinite(losses[-1]) or smoothed[-1] > min(1.0, *smoothed) + max(_GIVEN_BACK * gained, _TOO_HIGH)


def _smooth(losses: Sequence[float]) -> list[float]:
    """Return the running mean, without the bias of its start (Kingma & Ba 2014, arXiv:1412.6980, section 3)."""
    mean, smoothed = 0.0, []
    for count, loss in enumerate(losses, start=1):
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
        smoothed.append(mean / (1 - _SMOOTHING**count))
    return smoothed
