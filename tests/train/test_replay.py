"""General rows among the own ones: the share that was asked for, evenly, the same each time."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tunesmith.train.batches import rows_of_steps, with_replay


@given(
    rows=st.integers(1, 60),
    batch_size=st.integers(1, 9),
    epochs=st.floats(0.3, 4),
    general=st.integers(1, 20),
    share=st.floats(0.01, 0.9),
    seed=st.integers(0, 5),
)
def test_every_beginning_of_a_run_holds_the_share(rows, batch_size, epochs, general, share, seed):
    plain = rows_of_steps(rows, batch_size, epochs, seed)
    mixed = with_replay(plain, rows, general, share, seed)
    own = added = 0
    for before, after in zip(plain, mixed, strict=True):
        assert after[: len(before)] == before
        extra = after[len(before) :]
        assert all(rows <= number < rows + general for number in extra)
        own, added = own + len(before), added + len(extra)
        assert abs(added - own * share / (1 - share)) <= 0.5 + 1e-6
    counts = Counter(number for step in mixed for number in step if number >= rows)
    times = [counts[rows + number] for number in range(general)]
    assert max(times) - min(times) <= 1
    assert mixed == with_replay(plain, rows, general, share, seed)


def test_without_general_rows_nothing_changes():
    plain = rows_of_steps(10, 4, 2, 0)
    assert with_replay(plain, 10, 0, 0.5, 0) == plain == with_replay(plain, 10, 5, 0.0, 0)
