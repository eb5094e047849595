"""Intervals hold the truth as often as they say, and tests don't cry wolf."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tunesmith.evaluate.statistics import (
    bootstrap_interval,
    label_parts,
    macro_f1,
    mean_interval,
    micro_f1,
    paired_difference,
    paired_test,
    proportion_interval,
    rows_needed,
)

binary = st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0])), min_size=1, max_size=60)
graded = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30)


@pytest.mark.parametrize("truth", [0.05, 0.3, 0.5, 0.9])
def test_proportion_intervals_hold_the_truth(truth: float) -> None:
    draws = np.random.default_rng(1).binomial(60, truth, size=800)
    held = [interval.low <= truth <= interval.high for k in draws for interval in [proportion_interval(int(k), 60)]]
    assert 0.92 <= np.mean(held) <= 0.99


@pytest.mark.parametrize(("both", "wins", "losses"), [(0.1, 0.7, 0.02), (0.4, 0.2, 0.2), (0.9, 0.03, 0.01)])
def test_paired_binary_intervals_hold_the_truth(both: float, wins: float, losses: float) -> None:
    cells = np.random.default_rng(2).multinomial(100, [both, wins, losses, 1 - both - wins - losses], size=600)
    held = []
    for right, better, worse, wrong in cells:
        baseline = [1.0] * right + [0.0] * better + [1.0] * worse + [0.0] * wrong
        candidate = [1.0] * right + [1.0] * better + [0.0] * worse + [0.0] * wrong
        interval = paired_difference(baseline, candidate)
        held.append(interval.low <= wins - losses <= interval.high)
    assert np.mean(held) >= 0.93


def test_bootstrap_intervals_of_graded_scores_hold_the_truth() -> None:
    rng = np.random.default_rng(3)
    held = []
    for seed in range(300):
        baseline = rng.beta(2, 3, size=80)
        candidate = np.clip(baseline + rng.normal(0.1, 0.15, size=80), -5, 5)
        interval = paired_difference(list(baseline), list(candidate), resamples=800, seed=seed)
        held.append(interval.low <= 0.1 <= interval.high)
    assert 0.90 <= np.mean(held) <= 0.985


def test_bootstrap_agrees_with_the_normal_theory_for_means() -> None:
    values = np.random.default_rng(4).normal(5.0, 2.0, size=400)
    interval = mean_interval(list(values))
    reach = 1.96 * values.std(ddof=1) / np.sqrt(400)
    assert interval.value == pytest.approx(values.mean())
    assert (interval.high - interval.low) / 2 == pytest.approx(reach, rel=0.05)


def test_macro_f1_by_hand() -> None:
    references = ["a", "a", "b", "c"]
    answers = ["a", "b", "b", "no label"]
    # a: 1 hit, 2 wanted, 1 given -> 2/3; b: 1 hit, 1 wanted, 2 given -> 2/3; c: no hit -> 0
    interval = bootstrap_interval(label_parts(answers, references), macro_f1)
    assert interval.value == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert interval.low <= interval.value <= interval.high


def test_micro_f1_by_hand() -> None:
    interval = bootstrap_interval([(1, 0, 1), (2, 1, 0), (0, 0, 0)], micro_f1)
    assert interval.value == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
    assert bootstrap_interval([(0, 0, 0)], micro_f1).value == 1.0


def test_mcnemar_is_exact() -> None:
    baseline = [0.0] * 9 + [1.0] * 2 + [1.0] * 50
    candidate = [1.0] * 9 + [0.0] * 2 + [1.0] * 50
    assert paired_test(baseline, candidate).p_value == pytest.approx(stats.binomtest(9, 11).pvalue)
    assert paired_test([0.0] * 3, [1.0] * 3).p_value == pytest.approx(0.25)


def test_permutation_test_is_exact_for_few_rows() -> None:
    # Of the 2^4 sign patterns, only all-plus and all-minus are as extreme.
    assert paired_test([0.1, 0.2, 0.3, 0.4], [0.2, 0.4, 0.6, 0.8]).p_value == pytest.approx(2 / 16)


def test_tests_rarely_reject_equal_arms() -> None:
    rng = np.random.default_rng(5)
    rejected = [
        paired_test(list(rng.random(30)), list(rng.random(30)), resamples=500).p_value < 0.05 for _ in range(150)
    ]
    assert np.mean(rejected) < 0.11


@given(binary | graded)
@settings(max_examples=40, deadline=None)
def test_swapping_the_arms_mirrors_the_result(pairs: list[tuple[float, float]]) -> None:
    left, right = [a for a, _ in pairs], [b for _, b in pairs]
    one, other = (paired_difference(x, y, resamples=300) for x, y in ((left, right), (right, left)))
    assert one.value == pytest.approx(-other.value)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-9)
    assert one.low - 1e-9 <= one.value <= one.high + 1e-9
    p_values = [paired_test(x, y, resamples=300).p_value for x, y in ((left, right), (right, left))]
    assert 0.0 < min(p_values) <= max(p_values) <= 1.0
    assert p_values[0] == pytest.approx(p_values[1], abs=0.1)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40) | st.lists(st.sampled_from([0.0, 1.0]), min_size=1))
@settings(max_examples=40, deadline=None)
def test_equal_arms_differ_by_nothing(scores: list[float]) -> None:
    interval = paired_difference(scores, scores, resamples=200)
    assert interval.low <= 0.0 <= interval.high
    assert interval.value == 0.0
    assert paired_test(scores, scores).p_value == 1.0
    assert rows_needed(scores, scores) is None


def test_the_same_seed_gives_the_same_interval() -> None:
    values = list(np.random.default_rng(6).random(50))
    assert mean_interval(values, seed=7) == mean_interval(values, seed=7)
    assert mean_interval(values, seed=7) != mean_interval(values, seed=8)


def test_enough_rows_are_enough() -> None:
    rng = np.random.default_rng(7)
    baseline, candidate = list((rng.random(40) < 0.5) * 1.0), list((rng.random(40) < 0.62) * 1.0)
    needed = rows_needed(baseline, candidate)
    assert needed is not None and needed > 40
    repeats = -(-needed // 40)
    assert paired_test(baseline * repeats, candidate * repeats).p_value < 0.05


@pytest.mark.parametrize(("left", "right"), [([], []), ([1.0], [1.0, 0.0])])
def test_rows_must_pair_up(left: list[float], right: list[float]) -> None:
    with pytest.raises(ValueError, match="same rows"):
        paired_difference(left, right)
