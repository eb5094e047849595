"""AdamW with warm-up, decay and clipping, on weights of any number format, and its state as plain tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tunesmith.learn.adamw import AdamW
from tunesmith.learn.rounding import round_stochastically
from tunesmith.models.adapters.adapter import ParameterGroup, Rounding
from tunesmith.specs.tune import OptimisationSpec

_MASTER = "master"


@dataclass(eq=False)
class _Slot:
    """One parameter: how fast it learns, how it is rounded, its running means (empty before its first step)."""

    parameter: nn.Parameter
    rate_factor: float
    rounding: Rounding
    state: dict[str, Tensor] = field(default_factory=dict)

    @property
    def is_precise(self) -> bool:
        """Whether the parameter itself can take small steps."""
        return self.parameter.dtype.itemsize >= 4


class Optimiser:
    """AdamW on fixed parameters, for a known number of steps.

    Weights in bfloat16 move in float32: through a copy that is kept (`master`), or through one that is made for the
    step and rounded at random. The latter draws its random numbers from the step's number alone.
    """

    def __init__(self, groups: Sequence[ParameterGroup], spec: OptimisationSpec, steps: int) -> None:
        """Take resolved settings: `learning_rate` is a number here."""
        self._slots = [
            _Slot(parameter, group.rate_factor, group.rounding) for group in groups for parameter in group.parameters
        ]
        self._spec = spec
        self._steps = steps
        assert not isinstance(spec.learning_rate, str)
        self._peak_rate = float(spec.learning_rate)
        self._adamw = AdamW((spec.beta1, spec.beta2), spec.weight_decay, eight_bits=spec.optimiser == "adamw_8bit")

    @torch.no_grad()
    def step(self, index: int, *, rate: float | None = None) -> float:
        """Clip the gradients, move the parameters and clear the gradients; return the learning rate used.

        Args:
            index: the step's number, from 0.
            rate: the learning rate; None takes the schedule's.

        Raises:
            ModelError: the running means are to be kept in 8 bits, and `bitsandbytes` isn't installed.
        """
        if rate is None:
            rate = self._peak_rate * schedule_factor(self._spec, index, self._steps)
        moving = [slot for slot in self._slots if slot.parameter.grad is not None]
        if moving:
            clip = _clip_factor([_gradient(slot) for slot in moving], self._spec.max_gradient_norm)
            for factor in {slot.rate_factor: None for slot in moving}:
                alike = [slot for slot in moving if slot.rate_factor == factor]
                self._move_together([slot for slot in alike if slot.is_precise], rate * factor, clip)
                generator = _generator(index, moving[0].parameter.device)
                for slot in alike:
                    if not slot.is_precise:
                        self._move_in_float32(slot, rate * factor, clip, generator)
        return rate

    def _move_together(self, slots: Sequence[_Slot], rate: float, clip: Tensor) -> None:
        """Move weights that take small steps themselves."""
        gradients = [_gradient(slot).mul_(clip) for slot in slots]
        for slot in slots:
            slot.state = slot.state or self._adamw.new_state(slot.parameter)
        self._adamw.step([slot.parameter for slot in slots], gradients, [slot.state for slot in slots], rate)
        for slot in slots:
            slot.parameter.grad = None

    def _move_in_float32(self, slot: _Slot, rate: float, clip: Tensor, generator: torch.Generator) -> None:
        """Move one parameter of a coarse number format; its gradient is gone before the next one's is converted."""
        parameter = slot.parameter
        gradient = _gradient(slot).float().mul_(clip)
        parameter.grad = None
        if not slot.state:
            slot.state = self._adamw.new_state(parameter)
            if slot.rounding == "master":
                slot.state[_MASTER] = parameter.detach().float()
        weight = slot.state.get(_MASTER)
        precise = parameter.detach().float() if weight is None else weight
        self._adamw.step([precise], [gradient], [slot.state], rate)
        parameter.copy_(precise if weight is not None else round_stochastically(precise, generator))

    def tensors(self) -> dict[str, Tensor]:
        """Return the running means by parameter number; empty before the first step."""
        return {
            f"{number}.{name}": value for number, slot in enumerate(self._slots) for name, value in slot.state.items()
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the running means of `tensors()`."""
        for slot in self._slots:
            slot.state = {}
        for key, value in tensors.items():
            number, name = key.split(".", 1)
            slot = self._slots[int(number)]
            slot.state[name] = value.to(slot.parameter.device, copy=True)


def _gradient(slot: _Slot) -> Tensor:
    """Return the gradient that is there."""
    assert slot.parameter.grad is not None
    return slot.parameter.grad


def _clip_factor(gradients: Sequence[Tensor], longest: float) -> Tensor:
    """Return what all gradients are multiplied by, so that together they are at most `longest`; at most 1."""
    norms = [
        torch.linalg.vector_norm(gradient, dtype=torch.promote_types(gradient.dtype, torch.float32))
        for gradient in gradients
    ]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return longest / (norm + 1e-6).clamp(min=longest)


def _generator(index: int, device: torch.device) -> torch.Generator:
    """Return a step's own random numbers: a resumed run draws the same."""
    return torch.Generator(device).manual_seed(index)


def schedule_factor(spec: OptimisationSpec, index: int, steps: int) -> float:
    """Return the share of the peak learning rate at step `index` (from 0) of `steps`.

    It rises in a line over the warm-up, then falls to zero in a line, along half a cosine, or stays.
    """
    warmup = math.ceil(spec.warmup_fraction * steps)
    if index < warmup:
        return (index + 1) / warmup
    if spec.schedule == "constant":
        return 1.0
    left = (steps - index) / max(1, steps - warmup)
    return left if spec.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left))
