"""`auto` is resolved from sizes; what the user says stays."""

import pytest

from tunesmith.learn.optimiser import schedule_factor
from tunesmith.specs.tune import LimitsSpec, OptimisationSpec, TuneSpec
from tunesmith.train.settings import Amount, resolve_limits, resolve_optimisation, step_count, usual_rate


def spec_of(**parts):
    return TuneSpec.parse({"data": {"path": "rows"}, **parts})


def resolved(rows, tokens_a_row=20, **parts):
    return resolve_optimisation(spec_of(**parts), Amount(rows, rows * tokens_a_row), hidden=576)


@pytest.mark.parametrize(("rows", "epochs"), [(10, 8), (300, 8), (1200, 2), (3200, 1), (100_000, 1)])
def test_small_data_is_passed_more_often(rows, epochs):
    assert resolved(rows).epochs == epochs


def test_the_demo_rows_resolve_to_what_was_measured():
    """1,239 rows of 9.5 learnt tokens: two passes in steps of 16 rows at 1e-3, validated every 31 steps."""
    found = resolve_optimisation(spec_of(), Amount(1239, 11_796), hidden=576)
    values = found.epochs, found.batch_size, found.learning_rate, found.validate_every_steps
    assert values == (2, 16, 1e-3, 31)


def test_long_answers_are_passed_less_often_in_smaller_steps():
    short, long = resolved(1000, 30), resolved(1000, 2000)
    assert (short.epochs, short.batch_size) == (2, 16)
    assert (long.epochs, long.batch_size) == (1, 8)


def test_steps_on_one_word_labels_hold_more_rows():
    assert resolved(5000, 2).batch_size == 64
    assert resolved(60, 2).batch_size == 8  # twice as large would leave too few steps


@pytest.mark.parametrize(("tokens", "epochs"), [(50_000, 4), (300_000, 3), (5_000_000, 1)])
def test_small_documents_are_passed_up_to_four_times(tokens, epochs):
    spec = spec_of(method="pretrain")
    assert resolve_optimisation(spec, Amount(tokens // 1000, tokens), hidden=576).epochs == epochs


def test_each_adapter_has_its_rate():
    lora, qlora, full = (usual_rate(spec_of(adapter=kind), 576) for kind in ("lora", "qlora", "full"))
    assert lora == qlora == 10 * full == 1e-3
    assert usual_rate(spec_of(method="pretrain"), 576) == 5e-4
    assert usual_rate(spec_of(adapter={"b_rate_ratio": 16}), 576) == 2.5e-4  # B then learns at 4e-3


def test_long_runs_validate_every_200_steps():
    assert resolved(100_000).validate_every_steps == 200


def test_a_search_for_the_rate_stays_a_search():
    assert resolved(100, optimisation={"learning_rate": "find"}).learning_rate == "find"


def test_wider_models_take_smaller_steps():
    rates = [usual_rate(spec_of(), hidden) for hidden in (64, 576, 2048, 8192)]
    assert rates[0] == rates[1] == 1e-3
    assert rates == sorted(rates, reverse=True)
    assert 1e-4 < rates[-1] < 2e-4


def test_what_is_asked_stays():
    asked = {"learning_rate": 0.5, "batch_size": 3, "epochs": 1.5, "validate_every_steps": 7}
    assert resolved(1000, optimisation=asked) == OptimisationSpec(**asked)


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
