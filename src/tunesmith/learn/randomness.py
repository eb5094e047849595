"""The state of torch's random numbers: kept in checkpoints, put back before a step is computed again."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_CPU, _CUDA = "random", "random_cuda"
#: The names of `random_state`'s tensors.
RANDOM_NAMES = (_CPU, _CUDA)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the state of the random numbers that training on `device` draws."""
    state = {_CPU: torch.get_rng_state()}
    if device.type == "cuda":
        state[_CUDA] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Go back to a state that `random_state` returned for the same kind of device."""
    torch.set_rng_state(state[_CPU])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[_CUDA], device)
