"""Steps and their parts: every row is seen as often as asked, and nothing depends on chance."""

from hypothesis import given
from hypothesis import strategies as st

from tunesmith.train.batches import rows_of_steps
from tunesmith.train.settings import step_count


@given(
    rows=st.integers(1, 200),
    batch_size=st.integers(1, 33),
    epochs=st.floats(0.05, 4, allow_nan=False),
    seed=st.integers(0, 9),
)
def test_every_epoch_sees_every_row_once(rows, batch_size, epochs, seed):
    steps = rows_of_steps(rows, batch_size, epochs, seed)
    seen = [row for step in steps for row in step]
    assert len(steps) == step_count(rows, batch_size, epochs)
    assert all(len(step) == batch_size for step in steps[:-1])
    for start in range(0, len(seen) - rows + 1, rows):
        assert sorted(seen[start : start + rows]) == list(range(rows))
    assert steps == rows_of_steps(rows, batch_size, epochs, seed)


def test_epochs_are_shuffled_differently():
    steps = rows_of_steps(50, 50, 2, seed=3)
    assert steps[0] != steps[1]
    assert steps != rows_of_steps(50, 50, 2, seed=4)
