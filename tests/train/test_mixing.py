"""Sources share epochs by their weights: exactly, the same way each time, every row in its turn."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tunesmith.train.batches import rows_of_steps
from tunesmith.train.mixing import apportion, mixture

sources_of_rows = st.lists(st.integers(0, 3), min_size=1, max_size=80)
weights = st.lists(st.floats(0.01, 100), min_size=4, max_size=4)


@given(sources_of_rows, weights, st.floats(1, 100), st.integers(0, 9), st.integers(1, 5))
def test_epochs_hold_each_source_by_its_share_and_each_row_in_its_turn(sources, weights, temperature, seed, epochs):
    mixed = mixture(sources, weights, temperature)
    rows = Counter(sources)
    sizes = {source: (weights[source] * count) ** (1 / temperature) for source, count in rows.items()}
    if mixed is None:
        return
    seen: Counter[int] = Counter()
    for number in range(epochs):
        epoch = mixed.epoch(number, seed)
        assert len(epoch) == len(sources)
        by_source = Counter(sources[row] for row in epoch)
        for source, size in sizes.items():
            expected = len(sources) * size / sum(sizes.values())
            # At least one row of each source: what others give up for it is at most one row for each such source.
            assert abs(by_source[source] - expected) < 1 + len(rows)
        seen.update(epoch)
        for source in rows:
            times = [seen[row] for row in range(len(sources)) if sources[row] == source]
            assert max(times) - min(times) <= 1
    assert mixed.epoch(epochs - 1, seed) == epoch


@given(sources_of_rows, st.floats(0.1, 10))
def test_equal_weights_change_nothing(sources, weight):
    assert mixture(sources, [weight] * 4) is None


def test_weights_and_temperature():
    sources = [0] * 300 + [1] * 100
    plain, double, even = (mixture(sources, [1, weight], t) for weight, t in ((1, 1), (3, 1), (1, 1000)))
    assert plain is None and double is not None and even is not None
    assert double.counts == (200, 200)
    assert even.counts == (200, 200)
    seen = Counter(double.epoch(0, seed=1))
    assert [sum(row in seen for row in range(300)), {seen[row] for row in range(300, 400)}] == [200, {2}]
    assert double.epoch(0, seed=1) != double.epoch(1, seed=1)


@given(st.integers(0, 200), st.lists(st.floats(0.001, 1), min_size=1, max_size=6))
def test_apportioned_parts_add_up(total, sizes):
    parts = apportion(total, [size / sum(sizes) for size in sizes])
    assert sum(parts) == total
    assert total < len(sizes) or min(parts) >= 1


def test_steps_follow_the_mixture():
    mixed = mixture([0] * 30 + [1] * 10, [1, 3])
    assert mixed is not None
    steps = rows_of_steps(40, 8, 2, 5, mixed)
    assert [row for step in steps for row in step] == mixed.epoch(0, 5) + mixed.epoch(1, 5)
