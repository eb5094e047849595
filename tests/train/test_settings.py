"""`auto` is resolved from sizes; what the user says stays."""

import pytest

from tunesmith.learn.optimiser import schedule_factor
from tunesmith.specs.tune import LimitsSpec, OptimisationSpec
from tunesmith.train.settings import resolve_limits, resolve_optimisation, step_count


@pytest.mark.parametrize(("rows", "epochs"), [(10, 8), (300, 8), (1200, 2), (3200, 1), (100_000, 1)])
def test_small_data_is_passed_more_often(rows, epochs):
    assert resolve_optimisation(OptimisationSpec(), rows=rows, hidden=576).epochs == epochs


def test_wider_models_take_smaller_steps():
    rates = [resolve_optimisation(OptimisationSpec(), rows=1000, hidden=h).learning_rate for h in (64, 576, 2048, 8192)]
    assert rates[0] == rates[1] == 1e-3
    assert rates == sorted(rates, reverse=True)
    assert 1e-4 < rates[-1] < 2e-4


def test_what_is_asked_stays():
    asked = OptimisationSpec(learning_rate=0.5, batch_size=3, epochs=1.5, validate_every_steps=7)
    assert resolve_optimisation(asked, rows=1000, hidden=576) == asked


def test_the_context_bounds_the_rows():
    limits = resolve_limits(
        LimitsSpec(max_tokens=9999), context_tokens=512, dtype="float32", tokens_per_microbatch=2048
    )
    assert (limits.max_tokens, limits.dtype, limits.tokens_per_microbatch) == (512, "float32", 2048)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_rate_warms_up_and_falls(schedule):
    spec = OptimisationSpec(schedule=schedule, warmup_fraction=0.1)
    factors = [schedule_factor(spec, index, 100) for index in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == 1.0
    assert factors[:10] == sorted(factors[:10])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert all(factor > 0 for factor in factors)


def test_a_part_of_an_epoch_is_at_least_one_step():
    assert step_count(10, 16, 0.1) == 1
