"""How training went, as numbers; `drawing.py` draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

#: A value at an optimiser step.
Point = tuple[int, float]


@dataclass(frozen=True, slots=True)
class Curves:
    """How training went, by optimiser step.

    Attributes:
        train_loss: mean loss of the step's learnt tokens, in nats a token.
        validation_loss: mean loss over the validation rows, in nats a token.
        learning_rate: the step size.
        best_step: the step whose weights were kept, if known.
    """

    train_loss: Sequence[Point]
    validation_loss: Sequence[Point] = ()
    learning_rate: Sequence[Point] = ()
    best_step: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain data; numbers that JSON can't hold become None."""
        return {
            "train_loss": _plain(self.train_loss),
            "validation_loss": _plain(self.validation_loss),
            "learning_rate": _plain(self.learning_rate),
            "best_step": self.best_step,
        }


def _plain(points: Sequence[Point]) -> list[list[float | int | None]]:
    """Return points as lists."""
    return [[step, value if math.isfinite(value) else None] for step, value in points]
