"""FlexAttention's masks and scores say what the CPU's layout computes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trees import batches
from tunesmith.chat.renderer import Rendered
from tunesmith.learn import flex
from tunesmith.learn.attention import TreeLayout
from tunesmith.learn.flex import FlexLayout
from tunesmith.learn.tree import TokenTree, build_tree

_CPU = torch.device("cpu")


def sight(tree: TokenTree, window_tokens: int | None) -> torch.Tensor:
    """(N, N): who sees whom, by the definition."""
    count = len(tree.token_ids)
    seen = torch.zeros(count, count, dtype=torch.bool)
    for segment in tree.segments:
        path = [*(tree.segments[ancestor] for ancestor in segment.ancestors), segment]
        places = [token for part in path for token in range(part.start, part.start + part.length)]
        for q in range(segment.start, segment.start + segment.length):
            before = places[: places.index(q) + 1]
            seen[q, before if window_tokens is None else before[-window_tokens:]] = True
    return seen


@settings(max_examples=60, deadline=None)
@given(batches(longest=24), st.sampled_from([None, 1, 5, 16]), st.sampled_from([2, 8, 128]))
def test_the_blocks_and_the_mask_are_the_tree(rows, window_tokens, block_tokens):
    tree = build_tree(rows)
    count = len(tree.token_ids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flex, "_BLOCK_TOKENS", block_tokens)
        mask = FlexLayout(tree, _CPU).block_mask(window_tokens)
    padded = mask.shape[-1]
    place = torch.arange(padded)
    by_token = mask.mask_mod(place, place, place[:, None], place[None, :])
    assert torch.equal(by_token[:count, :count], sight(tree, window_tokens))
    assert torch.equal(by_token[count:], torch.eye(padded, dtype=torch.bool)[count:])
    # A block counts as full only if it is, and is left out only if it is empty.
    blocks = by_token.unflatten(1, (-1, block_tokens)).unflatten(0, (-1, block_tokens))
    some, every = blocks.any(3).any(1), blocks.all(3).all(1)
    partial, full = (
        torch.zeros_like(some).scatter_(1, index[0, 0].long(), torch.arange(len(some)) < number[0, 0, :, None])
        for number, index in (
            (mask.kv_num_blocks, mask.kv_indices),
            (mask.full_kv_num_blocks, mask.full_kv_indices),
        )
    )
    assert not (some & ~(partial | full)).any()
    assert not (full & ~every).any()
    assert not (partial & full).any()
    if window_tokens is None:
        assert torch.equal(partial | full, some)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("window_tokens", "softcap"), [(None, None), (16, None), (None, 2.0), (16, 2.0)])
def test_the_forward_pass_is_the_trees(dtype, window_tokens, softcap):
    random = torch.Generator().manual_seed(0)

    def text(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 300, (count,), generator=random).tolist())

    system, group = text(140), text(20)
    rows = [(*system, *text(90)), (*system, *group, *text(7)), (*system, *group, *text(150)), text(3), text(40)]
    tree = build_tree([Rendered(ids, (True,) * len(ids)) for ids in rows])
    query, key, value = (
        torch.randn(1, heads, len(tree.token_ids), 16, dtype=dtype, generator=random) for heads in (4, 2, 2)
    )
    asked = {"scale": 0.3, "window_tokens": window_tokens, "softcap": softcap}
    with torch.no_grad():
        true = TreeLayout(tree).attend(0, query, key, value, **asked)
        found = FlexLayout(tree, _CPU).attend(0, query, key, value, **asked)
    error = 1e-5 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(found, true, rtol=error, atol=error)


def test_trees_of_all_lengths_share_one_trace():
    traces = []

    def backend(graph, inputs):
        traces.append(graph)
        return graph

    attention = torch.compile(flex.flex_attention, dynamic=True, backend=backend)
    for count in (100, 200, 300, 500, 900):
        tree = build_tree([Rendered(tuple(range(3, 3 + count)), (True,) * count)])
        query, key, value = (torch.randn(1, heads, count, 16) for heads in (4, 2, 2))
        layout = FlexLayout(tree, _CPU)
        layout._attention = attention
        with torch.no_grad():
            found = layout.attend(0, query, key, value, scale=0.3, window_tokens=16, softcap=None)
        true = TreeLayout(tree).attend(0, query, key, value, scale=0.3, window_tokens=16, softcap=None)
        torch.testing.assert_close(found, true, rtol=1e-5, atol=1e-5)
    # The first one takes its lengths for fixed; after the second they are symbols.
    assert len(traces) <= 2
