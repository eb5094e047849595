"""Memory in large pages is zero, nobody else's, and goes back when nobody has it any more."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.native import memory

dtypes = st.sampled_from([torch.bfloat16, torch.float32, torch.float64, torch.int8])
shapes = st.lists(st.integers(0, 40), min_size=1, max_size=3).map(tuple)


@given(asked=st.lists(st.tuples(shapes, dtypes), min_size=1, max_size=20))
def test_parts_are_zero_and_apart(asked):
    made = [memory.zeros(shape, dtype) for shape, dtype in asked]
    for number, (tensor, (shape, dtype)) in enumerate(zip(made, asked, strict=True)):
        assert (tuple(tensor.shape), tensor.dtype) == (shape, dtype)
        assert not tensor.any()
        assert tensor.is_contiguous()
        tensor.fill_(number + 1)
    assert all(bool((tensor == number + 1).all()) for number, tensor in enumerate(made))


@pytest.mark.parametrize("count", [1000, (1 << 25) + 1])
def test_memory_goes_back_with_its_last_part(count, monkeypatch):
    monkeypatch.setattr(memory, "_stretches", memory._Stretches())
    maps = []
    mapped = memory._mapped
    monkeypatch.setattr(memory, "_mapped", lambda size: maps.append(weakref.ref(made := mapped(size))) or made)
    part = memory.zeros((count,), torch.int8)
    memory._stretches._stretch = None  # nobody adds to it any more
    assert part.numel() == count
    assert maps[0]() is not None
    del part
    gc.collect()
    assert maps[0]() is None
