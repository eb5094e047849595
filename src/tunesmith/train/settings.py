"""`auto` settings, resolved from the data's and the base's size. The rules are few and stand here alone."""

from __future__ import annotations

import math
from typing import Literal

from tunesmith.specs.tune import LimitsSpec, OptimisationSpec, TuneSpec

#: About how many rows' worth of learning small data gets: 1,200 rows are passed twice, 300 eight times.
_ROWS_TO_SEE = 2400
_MAX_EPOCHS = 8
#: Rows in a step, for data of at most so many rows: small data still gets a fair number of steps.
_BATCH_SIZES = ((4, 100), (8, 500), (16, 20_000))
#: The rate that suits LoRA on a model of SmolLM2-135M's width (measured); wider models want smaller steps.
_RATE_AT_WIDTH, _WIDTH, _WIDTH_POWER = 1e-3, 576, 0.75
_MAX_ROW_TOKENS = 4096
_VALIDATIONS = 5


def resolve_limits(
    limits: LimitsSpec, *, context_tokens: int, dtype: Literal["float32", "bfloat16"], tokens_per_microbatch: int
) -> LimitsSpec:
    """Return the limits with every `auto` replaced.

    Args:
        limits: as asked.
        context_tokens: what the base can take; a longer `max_tokens` is lowered to it.
        dtype: what `auto` means on this machine.
        tokens_per_microbatch: what `auto` means on this machine.
    """
    asked = _MAX_ROW_TOKENS if limits.max_tokens == "auto" else limits.max_tokens
    per_pass = tokens_per_microbatch if limits.tokens_per_microbatch == "auto" else limits.tokens_per_microbatch
    return limits.model_copy(
        update={
            "max_tokens": min(asked, context_tokens),
            "tokens_per_microbatch": per_pass,
            "dtype": dtype if limits.dtype == "auto" else limits.dtype,
        }
    )


def resolve_optimisation(optimisation: OptimisationSpec, *, rows: int, hidden: int) -> OptimisationSpec:
    """Return the settings with every `auto` replaced.

    Args:
        optimisation: as asked.
        rows: training rows.
        hidden: width of the base's hidden states.
    """
    asked = optimisation
    fitting = next((size for size, most in _BATCH_SIZES if rows <= most), 32)
    batch_size = fitting if asked.batch_size == "auto" else asked.batch_size
    passes = float(min(_MAX_EPOCHS, max(1, round(_ROWS_TO_SEE / rows))))
    epochs = passes if asked.epochs == "auto" else asked.epochs
    rate = float(f"{_RATE_AT_WIDTH * min(1.0, (_WIDTH / hidden) ** _WIDTH_POWER):.2g}")
    rarely = max(1, math.ceil(step_count(rows, batch_size, epochs) / _VALIDATIONS))
    return optimisation.model_copy(
        update={
            "batch_size": batch_size,
            "epochs": epochs,
            "learning_rate": rate if asked.learning_rate == "auto" else asked.learning_rate,
            "validate_every_steps": rarely if asked.validate_every_steps == "auto" else asked.validate_every_steps,
        }
    )


def step_count(rows: int, batch_size: int, epochs: float) -> int:
    """Return the number of optimiser steps; the last one may hold fewer rows."""
    return max(1, math.ceil(rows * epochs / batch_size))


def numbers(spec: TuneSpec) -> tuple[int, float, int]:
    """Return batch size, epochs and steps between validations of a resolved spec."""
    optimisation = spec.optimisation
    values = optimisation.batch_size, optimisation.epochs, optimisation.validate_every_steps
    assert not any(isinstance(value, str) for value in values), "the spec isn't resolved"
    return values  # type: ignore[return-value]
