"""`auto` settings, resolved from the data's and the base's size. The rules are few and stand here alone.

They look at the rows and at the tokens that count in the loss: 1,000 labels are less to learn from than 1,000 essays.
`docs/training.md` tells them in words.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from tunesmith.specs.tune import AdapterSpec, FullSpec, LimitsSpec, LoraSpec, OptimisationSpec, PretrainSpec, TuneSpec

#: About how many rows' worth of learning small data gets: 1,200 rows are passed twice, 300 eight times. A row with a
#: long answer counts as one for each so many learnt tokens.
_ROWS_TO_SEE, _TOKENS_OF_A_ROW = 2400, 128
_MAX_EPOCHS = 8
#: Documents: small ones are passed up to four times, which is nearly as good as new text (Muennighoff et al. 2023,
#: arXiv:2305.16264).
_DOCUMENT_TOKENS_TO_SEE, _MAX_DOCUMENT_EPOCHS = 1_000_000, 4
#: Rows in a step, for data of at most so many rows: small data still gets a fair number of steps.
_BATCH_SIZES = ((4, 100), (8, 500), (16, 20_000))
_LARGEST_BATCH = 32
#: A step that learns fewer tokens than this is mostly noise, one that learns more than that could have been several.
_MIN_STEP_TOKENS, _MAX_STEP_TOKENS = 96, 16_384
_FEWEST_STEPS, _SMALLEST_BATCH, _LARGEST_RAISED_BATCH = 60, 4, 64
#: The rate that suits LoRA on a model of SmolLM2-135M's width (measured); wider models want smaller steps.
_RATE_AT_WIDTH, _WIDTH, _WIDTH_POWER = 1e-3, 576, 0.75
#: All weights together want about a tenth of an adapter's rate (Schulman et al. 2025, "LoRA Without Regret"), and
#: plain text, where every token is learnt, half of what answers want.
_FULL_FACTOR, _DOCUMENTS_FACTOR = 0.1, 0.5
_MAX_ROW_TOKENS = 4096
#: Validations in a run, and the most steps between two of them.
_VALIDATIONS, _MOST_STEPS_BETWEEN = 5, 200


@dataclass(frozen=True, slots=True)
class Amount:
    """How much there is to learn: rows, and their tokens that count in the loss."""

    rows: int
    learnt_tokens: int


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


def resolve_optimisation(spec: TuneSpec, amount: Amount, *, hidden: int) -> OptimisationSpec:
    """Return the spec's settings with every `auto` replaced; `find` stays, as only training can answer it.

    Args:
        spec: as asked.
        amount: what there is to learn from.
        hidden: width of the base's hidden states.
    """
    asked = spec.optimisation
    epochs = _epochs(spec, amount) if asked.epochs == "auto" else asked.epochs
    batch_size = _batch_size(amount, epochs) if asked.batch_size == "auto" else asked.batch_size
    steps = step_count(amount.rows, batch_size, epochs)
    rarely = min(max(1, math.ceil(steps / _VALIDATIONS)), _MOST_STEPS_BETWEEN)
    return asked.model_copy(
        update={
            "batch_size": batch_size,
            "epochs": epochs,
            "learning_rate": usual_rate(spec, hidden) if asked.learning_rate == "auto" else asked.learning_rate,
            "validate_every_steps": rarely if asked.validate_every_steps == "auto" else asked.validate_every_steps,
        }
    )


def usual_rate(spec: TuneSpec, hidden: int) -> float:
    """Return the learning rate that suits the adapter and a base of width `hidden`, to two digits."""
    rate = _RATE_AT_WIDTH * min(1.0, (_WIDTH / hidden) ** _WIDTH_POWER) * _adapter_factor(spec.adapter)
    return float(f"{rate * (_DOCUMENTS_FACTOR if isinstance(spec.method, PretrainSpec) else 1.0):.2g}")


def _adapter_factor(adapter: AdapterSpec) -> float:
    if isinstance(adapter, FullSpec):
        return _FULL_FACTOR
    assert isinstance(adapter, LoraSpec)
    # LoRA+ steps A at the rate and B at a multiple of it: around the usual rate, one as much below as the other above.
    return float(adapter.b_rate_ratio**-0.5)


def _epochs(spec: TuneSpec, amount: Amount) -> float:
    if isinstance(spec.method, PretrainSpec):
        passes, most = _DOCUMENT_TOKENS_TO_SEE / max(1, amount.learnt_tokens), _MAX_DOCUMENT_EPOCHS
    else:
        passes, most = _ROWS_TO_SEE / max(amount.rows, amount.learnt_tokens / _TOKENS_OF_A_ROW), _MAX_EPOCHS
    return float(min(most, max(1, round(passes))))


def _batch_size(amount: Amount, epochs: float) -> int:
    """Return the size that fits the number of rows, doubled or halved until a step learns a fair number of tokens."""
    size = next((size for size, most in _BATCH_SIZES if amount.rows <= most), _LARGEST_BATCH)
    per_row = amount.learnt_tokens / amount.rows
    while (
        size * per_row < _MIN_STEP_TOKENS
        and size < _LARGEST_RAISED_BATCH
        and step_count(amount.rows, 2 * size, epochs) >= _FEWEST_STEPS
    ):
        size *= 2
    while size * per_row > _MAX_STEP_TOKENS and size > _SMALLEST_BATCH:
        size //= 2
    return size


def step_count(rows: int, batch_size: int, epochs: float) -> int:
    """Return the number of optimiser steps; the last one may hold fewer rows."""
    return max(1, math.ceil(rows * epochs / batch_size))


def numbers(spec: TuneSpec) -> tuple[int, float, int]:
    """Return batch size, epochs and steps between validations of a resolved spec."""
    optimisation = spec.optimisation
    values = optimisation.batch_size, optimisation.epochs, optimisation.validate_every_steps
    assert not any(isinstance(value, str) for value in values), "the spec isn't resolved"
    return values  # type: ignore[return-value]
