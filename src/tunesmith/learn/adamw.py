"""One step of AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) on given tensors, running means in 32 or 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from tunesmith.models.quantised import adamw_8bit, new_moments_8bit

#: Smaller tensors (norms, biases) keep their running means in 32 bits: there is little to save, and they matter much.
_SMALLEST_8BIT = 4096


@dataclass(frozen=True, slots=True)
class AdamW:
    """The settings that all parameters share. `eight_bits`: large tensors' running means are kept in 8 bits."""

    betas: tuple[float, float]
    weight_decay: float
    eight_bits: bool

    def new_state(self, weight: Tensor) -> dict[str, Tensor]:
        """Return the running means of a tensor before its first step.

        Raises:
            ModelError: 8 bits are asked for, and `bitsandbytes` isn't installed.
        """
        step = torch.zeros((), dtype=torch.float32, device=weight.device)
        if self.eight_bits and weight.numel() >= _SMALLEST_8BIT:
            return {"step": step.cpu(), **new_moments_8bit(weight)}
        precise = torch.promote_types(weight.dtype, torch.float32)
        means = {name: torch.zeros_like(weight, dtype=precise) for name in ("exp_avg", "exp_avg_sq")}
        return {"step": step, **means}

    def step(
        self, weights: Sequence[Tensor], gradients: Sequence[Tensor], states: Sequence[dict[str, Tensor]], rate: float
    ) -> None:
        """Move weights in place, and their running means with them.

        Args:
            weights: float32 or float64.
            gradients: of the same shapes and number formats.
            states: what `new_state` gave for each.
            rate: the learning rate of this step.
        """
        whole = []
        for weight, gradient, state in zip(weights, gradients, states, strict=True):
            if "exp_avg" in state:
                whole.append((weight, gradient, state))
                continue
            state["step"] += 1
            adamw_8bit(
                weight,
                gradient,
                state,
                step=int(state["step"]),
                rate=rate,
                betas=self.betas,
                weight_decay=self.weight_decay,
            )
        adamw(
            [weight for weight, _, _ in whole],
            [gradient for _, gradient, _ in whole],
            [state["exp_avg"] for _, _, state in whole],
            [state["exp_avg_sq"] for _, _, state in whole],
            [],
            [state["step"] for _, _, state in whole],
            fused=True,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=rate,
            weight_decay=self.weight_decay,
            eps=1e-8,
            maximize=False,
        )
