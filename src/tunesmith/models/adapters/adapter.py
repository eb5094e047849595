"""What training, checkpoints and the registry ask of an adapter, whatever its kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from torch import Tensor, nn

from tunesmith.models.resolve import BaseSource
from tunesmith.specs.tune import AdapterSpec

Rounding = Literal["master", "stochastic"]


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that learn at the same rate: `rate_factor` times the spec's learning rate.

    `rounding` says how those in bfloat16 take small steps: through a float32 copy (`master`), or rounded at random.
    """

    parameters: Sequence[nn.Parameter]
    rate_factor: float = 1.0
    rounding: Rounding = "master"


class Adapter(Protocol):
    """What is trained on one model. It stands on the model already."""

    @property
    def spec(self) -> AdapterSpec:
        """What was asked for."""

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return what is trained, in a fixed order."""

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps, by name."""

    def load_tensors(self, tensors: Mapping[str, Tensor], *, where: str) -> None:
        """Take over what `tensors()` gave.

        Raises:
            ModelError: names or shapes differ from this adapter's.
        """

    def save(self, folder: Path, base: BaseSource) -> None:
        """Write what loading the tuned model needs into `folder`; `base` is what it was tuned from.

        Raises:
            StorageError: the disk is full.
        """

    def merge(self) -> None:
        """Fold what was learnt into the model's own weights, in place; the model is then a plain one again."""

    def settle(self) -> None:
        """Leave the model as it will be served, in place, once training is over."""
