"""AdamW with warm-up and decay, and its state as plain tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tunesmith.models.adapters.adapter import ParameterGroup
from tunesmith.specs.tune import OptimisationSpec


class Optimiser:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) on fixed parameters, for a known number of steps."""

    def __init__(self, groups: Sequence[ParameterGroup], spec: OptimisationSpec, steps: int) -> None:
        """Take resolved settings: `learning_rate` is a number here."""
        self._parameters = [parameter for group in groups for parameter in group.parameters]
        self._spec = spec
        self._steps = steps
        assert not isinstance(spec.learning_rate, str)
        self._peak_rate = float(spec.learning_rate)
        self._adamw = torch.optim.AdamW(
            [{"params": list(group.parameters), "rate_factor": group.rate_factor} for group in groups],
            lr=self._peak_rate,
            betas=(spec.beta1, spec.beta2),
            weight_decay=spec.weight_decay,
            fused=True,
        )

    def step(self, index: int) -> float:
        """Clip the gradients, move the parameters and clear the gradients; return the learning rate used.

        Args:
            index: the step's number, from 0.
        """
        rate = self._peak_rate * schedule_factor(self._spec, index, self._steps)
        for group in self._adamw.param_groups:
            group["lr"] = rate * group["rate_factor"]
        torch.nn.utils.clip_grad_norm_(self._parameters, self._spec.max_gradient_norm)
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        return rate

    def tensors(self) -> dict[str, Tensor]:
        """Return the running means by parameter number; empty before the first step."""
        state = self._adamw.state_dict()["state"]
        return {f"{number}.{name}": value for number, values in state.items() for name, value in values.items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the running means of `tensors()`."""
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            number, name = key.split(".", 1)
            state.setdefault(int(number), {})[name] = value
        self._adamw.load_state_dict({"state": state, "param_groups": self._adamw.state_dict()["param_groups"]})


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
