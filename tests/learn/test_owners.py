"""Which sequence a target belongs to, however much is shared: what losses of single rows are made of."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.chat.renderer import Rendered
from tunesmith.learn import tree as tree_module
from tunesmith.learn.tree import build_tree


@st.composite
def batches(draw):
    """Sequences over few tokens, so that many begin alike, some are equal and some end where others go on."""
    sequences = []
    for _ in range(draw(st.integers(1, 7))):
        ids = [1] * draw(st.integers(0, 12)) + draw(st.lists(st.integers(3, 4), min_size=1, max_size=12))
        learnt = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
        sequences.append(Rendered(tuple(ids), tuple(learnt)))
    return sequences


@settings(max_examples=150)
@given(batches())
def test_each_sequence_sums_over_its_own_targets(sequences):
    tree = build_tree(sequences)
    # A target's value depends on all that stands before it, as its loss does.
    above = {}
    for segment in tree.segments:
        path = [*(tree.segments[a] for a in segment.ancestors), segment]
        before = [token for s in path for token in tree.token_ids[s.start : s.start + s.length].tolist()]
        for place in range(segment.start, segment.start + segment.length):
            above[place] = tuple(before[: len(before) - segment.length + place - segment.start + 1])
    contexts = [
        (*above[int(source)], int(target)) for source, target in zip(tree.target_source, tree.target_ids, strict=True)
    ]
    values = torch.tensor([value_of(context) for context in contexts], dtype=torch.float64)
    expected = [
        sum(value_of(s.token_ids[: t + 1]) for t in range(1, len(s.token_ids)) if s.learnt[t]) for s in sequences
    ]
    assert tree.by_sequence(values).tolist() == expected


def value_of(context):
    return hash(tuple(context)) % 1009


@settings(max_examples=100)
@given(batches())
def test_a_shared_token_counts_its_rows_lengths_evenly(sequences):
    """Summed over all rows' tokens, 1 / length is 1 a row, shared or not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree_module, "_MIN_SHARED_TOKENS", 1)  # then whoever begins alike shares
        tree = build_tree(sequences)
    paths = [path_to(tree, segment) for segment in tree.segments]
    rows_through = [sum(s.token_ids[: len(path)] == path for s in sequences) for path in paths]
    parts = zip(rows_through, tree.segments, tree.inverse_lengths, strict=True)
    energy = sum(count * segment.length * inverse for count, segment, inverse in parts)
    assert energy == pytest.approx(len(sequences))


def path_to(tree, segment):
    path = [*(tree.segments[a] for a in segment.ancestors), segment]
    return tuple(token for s in path for token in tree.token_ids[s.start : s.start + s.length].tolist())
