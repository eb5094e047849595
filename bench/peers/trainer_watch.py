"""Times the steps of transformers' `Trainer` and of what is built on it."""

from __future__ import annotations

from typing import Any

from clock import StepClock
from transformers import TrainerCallback


class TrainerWatch(TrainerCallback):  # type: ignore[misc]
    """Notes when steps begin and end, and their losses; the trainer must log every step."""

    def __init__(self, clock: StepClock) -> None:
        self._clock = clock
        self.losses: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """The first step begins; later ones begin when the one before ends."""
        if not self._clock.has_begun:
            self._clock.begin()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A step is done."""
        self._clock.step_done()

    def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
        """A step's loss is known; the summary at the end has none."""
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))
