"""Passes: every sequence once, within the budget in tokens of the tree, whatever order they come in."""

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tunesmith.chat.renderer import Rendered
from tunesmith.learn.tree import build_tree
from tunesmith.train.packing import microbatches, tree_tokens


@st.composite
def batches(draw):
    """Sequences over two token ids, some of which go on where others stop, so that much is shared at any depth."""
    tokens = st.lists(st.integers(0, 1), max_size=24)
    texts = [draw(tokens.filter(len))]
    for _ in range(draw(st.integers(0, 11))):
        start = draw(st.sampled_from(texts))
        cut = draw(st.integers(0, len(start)))
        texts.append((start[:cut] + draw(tokens)) or [0])
    return [Rendered(tuple(text), (True,) * len(text)) for text in texts]


@given(sequences=batches(), budget=st.integers(1, 200), seed=st.integers(0, 99))
def test_passes_hold_each_sequence_once_within_the_budget(sequences, budget, seed):
    passes = microbatches(sequences, budget)
    assert Counter(sequence for part in passes for sequence in part) == Counter(sequences)
    for part in passes:
        assert len(part) == 1 or len(build_tree(part).token_ids) <= budget
    random.Random(seed).shuffle(sequences)
    assert microbatches(sequences, budget) == passes


@given(sequences=batches())
def test_a_tree_holds_at_most_what_is_counted(sequences):
    counted, held = tree_tokens(sequences), len(build_tree(sequences).token_ids)
    assert held <= counted <= held + 7 * len(sequences)


def _rows(*texts):
    return [Rendered(tuple(text), (True,) * len(text)) for text in texts]


def test_shared_text_is_counted_once():
    """Four rows of 100 + 10 tokens behind one prompt are a pass of some 170 tokens, not of 440."""
    prompt = list(range(100))
    rows = _rows(*([*prompt, *range(1000 * n, 1000 * n + 10)] for n in range(1, 5)))
    assert len(microbatches(rows, 170)) == 1
    assert len(microbatches(rows, 130)) == 2


def test_rows_that_begin_alike_stand_together_and_so_do_rows_of_like_length():
    texts = [[n] * length for n, length in enumerate((90, 10, 88, 12, 89, 11))]
    texts += [[7] * 50 + [n] * 20 for n in (8, 9)]
    lengths = [[len(row.token_ids) for row in part] for part in microbatches(_rows(*texts), 300)]
    assert lengths == [[10, 11, 12, 70, 70, 88], [89, 90]]


def test_passes_are_about_equally_large():
    rows = _rows(*([n] * 100 for n in range(12)))
    assert [len(part) for part in microbatches(rows, 1100)] == [6, 6]
