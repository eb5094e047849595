"""Attention over trees through the kernels in C equals each token's attention to its own path, forward and backward."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.learn.native_attention import TreePaths, kernels_of, native_attention
from tunesmith.learn.tree import Segment
from tunesmith.native.calls import kernels

pytestmark = pytest.mark.skipif(kernels() is None, reason="no C compiler, or a processor without AVX512-BF16")


@st.composite
def trees(draw):
    """Segments whose parents are any earlier ones."""
    segments: list[Segment] = []
    start = 0
    for index in range(draw(st.integers(1, 6))):
        parent = draw(st.integers(-1, index - 1))
        ancestors = () if parent < 0 else (*segments[parent].ancestors, parent)
        length = draw(st.sampled_from([1, 2, 17, 63, 64, 65, 130]))
        segments.append(Segment(start, length, ancestors))
        start += length
    return segments


def reference(segments, query, key, value, scale, window):
    """Attend in float64, one segment after the other."""
    group = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(group, 1) for x in (key, value))
    outs = []
    for segment in segments:
        path = [*(segments[index] for index in segment.ancestors), segment]
        rows = torch.cat([torch.arange(one.start, one.start + one.length) for one in path])
        own = torch.arange(len(rows) - segment.length, len(rows))[:, None]
        place = torch.arange(len(rows))[None]
        hidden = (place > own) | (place <= own - (window or len(rows) + 1))
        q = query[segment.start : segment.start + segment.length]
        scores = torch.einsum("qhd,khd->hqk", q, key[rows]) * scale
        weights = torch.softmax(scores.masked_fill(hidden, -torch.inf), -1)
        outs.append(torch.einsum("hqk,khd->qhd", weights, value[rows]))
    return torch.cat(outs)


@settings(deadline=None, max_examples=30)
@given(
    segments=trees(),
    heads=st.sampled_from([(2, 2), (9, 3), (4, 1)]),
    size=st.sampled_from([32, 64, 96, 128]),
    window=st.sampled_from([None, 1, 20, 100]),
    seed=st.integers(0, 99),
)
def test_outputs_and_gradients_equal_those_of_each_path(segments, heads, size, window, seed):
    """Bfloat16 in and out, against float64 on the same numbers: 1 % of the length."""
    torch.manual_seed(seed)
    tokens = segments[-1].start + segments[-1].length
    shapes = [(tokens, heads[0], size), (tokens, heads[1], size), (tokens, heads[1], size)]
    own = [torch.randn(shape).bfloat16().requires_grad_() for shape in shapes]
    exact = [x.detach().double().requires_grad_() for x in own]
    found_kernels = kernels_of(own[0], own[1])
    assert found_kernels is not None
    paths = TreePaths(segments)
    out = native_attention(found_kernels, paths, *own, scale=size**-0.5, window_tokens=window)
    expected = reference(segments, *exact, size**-0.5, window)
    grad = torch.randn(out.shape).bfloat16()
    found = [out, *torch.autograd.grad(out, own, grad)]
    wanted = [expected, *torch.autograd.grad(expected, exact, grad.double())]
    for one, other in zip(found, wanted, strict=True):
        assert (one.double() - other).norm() <= 0.01 * other.norm() + 0.01
    again = native_attention(found_kernels, paths, *own, scale=size**-0.5, window_tokens=window)
    assert all(torch.equal(a, b) for a, b in zip(found[1:], torch.autograd.grad(again, own, grad), strict=True))


def test_heads_without_room_are_left_to_others():
    assert kernels_of(torch.zeros(1, 4, 48).bfloat16(), torch.zeros(1, 4, 48).bfloat16()) is None
    assert kernels_of(torch.zeros(1, 4, 512).bfloat16(), torch.zeros(1, 4, 512).bfloat16()) is None
    assert kernels_of(torch.zeros(1, 4, 64), torch.zeros(1, 4, 64)) is None
