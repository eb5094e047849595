"""The kernels in C give what plain PyTorch gives in float32, row by row, whatever else is computed beside."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from tunesmith.generate.native_attention import NativeAttention, can_attend
from tunesmith.generate.pages import PAGE_TOKENS
from tunesmith.native import build
from tunesmith.native.calls import kernels
from tunesmith.native.layers import NativeNorm
from tunesmith.native.product import NativeProduct

needs_kernels = pytest.mark.skipif(kernels() is None, reason="no C compiler, or a processor without AVX512-BF16")
#: Relative error of one number in bf16.
BF16 = 2**-8


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def close(found: Tensor, expected: Tensor, tolerance: float = BF16) -> bool:
    """Whether two tensors agree, by the size of what is expected."""
    size = expected.abs().mean() + expected.abs()
    return bool(((found.to(expected.dtype) - expected).abs() <= tolerance * size).all())


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@needs_kernels
@given(
    rows=st.integers(1, 40),
    depth=st.integers(1, 40).map(lambda half: 2 * half),
    outputs=st.integers(1, 150),
    has_bias=st.booleans(),
    seed=st.integers(0, 9),
)
def test_products_equal_float32_row_by_row(rows, depth, outputs, has_bias, seed):
    x, weight, up = numbers(rows, depth, seed=seed), numbers(outputs, depth, seed=seed + 1), numbers(outputs, depth)
    bias = numbers(outputs, seed=seed + 2) if has_bias else None
    residual = numbers(rows, outputs, seed=seed + 3)
    made, other = (NativeProduct(kernels(), one, bias) for one in (weight, up))
    assert torch.equal(made.weight(), weight)
    exact = functional.linear(x.float(), weight.float(), None if bias is None else bias.float())
    tolerance = 1e-5 * depth
    assert torch.allclose(made.wide(x), exact, rtol=1e-5, atol=tolerance)
    rounded = made.wide(x).bfloat16()
    assert torch.equal(made(x), rounded)
    assert torch.equal(made.added_to(residual, x), rounded + residual)
    updated = residual.clone()
    made.update(updated, x)
    assert torch.equal(updated, (made.wide(x) + residual.float()).bfloat16())
    assert torch.equal(made.gated(x, other), kernels().gate(made(x), other(x)))
    alone = torch.cat([made(x[i : i + 1]) for i in range(rows)])
    assert torch.equal(alone, rounded)


@needs_kernels
@pytest.mark.parametrize(("rows", "depth"), [(1, 512), (7, 512), (400, 512), (200, 5000)])
def test_threads_share_a_product_without_a_trace(rows, depth, threads):
    made = NativeProduct(kernels(), numbers(1000, depth), None)
    x = numbers(rows, 2 * depth)[:, depth // 2 : depth // 2 + depth]  # rows with a distance
    assert torch.allclose(made.wide(x), x.float() @ made.weight().float().t(), rtol=1e-4, atol=1e-5 * depth)
    assert torch.equal(made(x), torch.cat([made(one[None]) for one in x]))


@needs_kernels
@pytest.mark.parametrize("rows", [1, 5, 300])
def test_a_narrow_product_goes_on_where_a_wide_one_ends(rows, threads):
    wide, narrow = NativeProduct(kernels(), numbers(200, 3000), None), NativeProduct(kernels(), numbers(200, 6), None)
    x, low, into = numbers(rows, 3000), numbers(rows, 9)[:, 1:7], numbers(rows, 200, seed=5)
    exact = x.float() @ wide.weight().float().t() + low.float() @ narrow.weight().float().t()
    assert close(wide.together(x, narrow, low), exact)
    assert close(wide.together(x, narrow, low, into=into.clone()), exact + into.float())
    assert torch.equal(wide.together(x, narrow, low)[-1:], wide.together(x[-1:], narrow, low[-1:]))
    assert close(wide(x), x.float() @ wide.weight().float().t())  # nothing of it stays


@needs_kernels
@given(rows=st.integers(1, 150), width=st.integers(1, 20), columns=st.integers(1, 100), seed=st.integers(0, 9))
def test_sums_of_outer_products_equal_float32(rows, width, columns, seed):
    narrow, wide = numbers(rows, width + 1, seed=seed)[:, 1:], numbers(rows, columns + 2, seed=seed + 1)[:, 2:]
    exact = -0.5 * narrow.float().t() @ wide.float()
    found = kernels().sum_outer(narrow, wide, -0.5)
    assert found.dtype == torch.float32 and found.shape == (width, columns)
    assert torch.allclose(found, exact, rtol=1e-5, atol=1e-5 * rows)


@needs_kernels
def test_threads_share_a_sum_of_outer_products_without_a_trace(threads):
    narrow, wide = numbers(1001, 16), numbers(1001, 576, seed=1)
    found = kernels().sum_outer(narrow, wide, 1.0)
    assert torch.allclose(found, narrow.float().t() @ wide.float(), rtol=1e-5, atol=1e-3)
    half = kernels().sum_outer(narrow, wide[:, 64:128], 1.0)
    assert torch.equal(found[:, 64:128], half)


@needs_kernels
@given(tokens=st.integers(1, 40), heads=st.integers(1, 5), size=st.sampled_from([32, 64, 128]), seed=st.integers(0, 9))
def test_rotations_equal_float32_and_go_back(tokens, heads, size, seed):
    x, gradients = numbers(tokens, heads, size, seed=seed), numbers(tokens, heads, size, seed=seed + 1)
    cosines, sines = numbers(tokens, size, seed=seed + 2), numbers(tokens, size, seed=seed + 3)
    signed = torch.cat([-sines[:, : size // 2], sines[:, size // 2 :]], -1)[:, None].float()
    exact_x = x.float().requires_grad_()
    expected = rotated(exact_x, cosines[:, None].float(), signed)
    assert close(kernels().rotate(x, cosines, sines), expected)
    (back,) = torch.autograd.grad(expected, exact_x, gradients.float())
    assert close(kernels().rotate(gradients, cosines, sines, goes_back=True), back)


@needs_kernels
@given(
    rows=st.integers(1, 9), size=st.integers(1, 100), sharpness=st.sampled_from([0.1, 4, 60]), seed=st.integers(0, 9)
)
def test_the_loss_and_its_gradient_equal_float32(rows, size, sharpness, seed):
    logits = (numbers(rows, size, seed=seed).float() * sharpness).bfloat16()
    targets = torch.randint(size, (rows,), generator=torch.Generator().manual_seed(seed))
    weights = torch.rand(rows, generator=torch.Generator().manual_seed(seed))
    exact_logits = logits.float().requires_grad_()
    expected = functional.cross_entropy(exact_logits, targets, reduction="none")
    untouched = logits.clone()
    losses, hits = kernels().cross_entropy(untouched, targets, None)
    assert torch.allclose(losses, expected, rtol=1e-5, atol=1e-5) and torch.equal(untouched, logits)
    assert torch.equal(hits.bool(), logits.max(1).values == logits.gather(1, targets[:, None])[:, 0])
    assert torch.equal(kernels().cross_entropy(untouched, targets, weights)[0], losses)
    (gradient,) = torch.autograd.grad((expected * weights).sum(), exact_logits)
    assert torch.allclose(untouched.float(), gradient, rtol=BF16, atol=1e-6)


@needs_kernels
@pytest.mark.parametrize("target", [-1, 3])
def test_a_target_outside_the_vocabulary_is_refused_before_anything_is_written(target):
    logits = torch.zeros(2, 3).bfloat16()
    with pytest.raises(IndexError, match="for 3 tokens"):
        kernels().cross_entropy(logits, torch.tensor([0, target]), torch.ones(2))
    assert not logits.any()


@needs_kernels
def test_the_loss_of_impossible_and_certain_targets_is_finite():
    logits = torch.tensor([[0.0, -3e38, 3e38], [1e4, 0.0, -1e4]]).bfloat16()
    losses, hits = kernels().cross_entropy(logits, torch.tensor([2, 1]), torch.ones(2))
    assert losses.tolist() == [0.0, pytest.approx(1e4, rel=0.01)] and hits.tolist() == [1, 0]
    assert logits.tolist() == [[0, 0, 0], [1, -1, 0]]


@needs_kernels
def test_the_gate_equals_silu():
    gates, ups = numbers(33, 160) * 8, numbers(33, 160, seed=1)
    assert close(kernels().gate(gates, ups), functional.silu(gates.double()) * ups.double(), 2 * BF16)
    extreme = torch.tensor([[0.0, -0.0, 100.0, -100.0, 3e38, -3e38, torch.inf, 1.0] * 4]).bfloat16()
    assert close(kernels().gate(extreme, torch.ones_like(extreme))[:, :6], functional.silu(extreme)[:, :6])


@needs_kernels
@pytest.mark.parametrize("shape", [(1, 16), (5, 576), (300, 2048), (4, 9, 64)])
def test_norms_equal_float32(shape, threads):
    x = numbers(shape[0], *([shape[1] + 3] if len(shape) == 3 else []), shape[-1])
    x = x[:, 1 : shape[1] + 1] if len(shape) == 3 else x
    factors = torch.rand(shape[-1]) + 0.5
    expected = functional.rms_norm(x.float(), [shape[-1]], factors, 1e-5)
    assert close(NativeNorm(kernels(), factors, 1e-5)(x), expected)


def rotated(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x * cosines + torch.cat([x[..., half:], x[..., :half]], -1) * sines


def reference(query: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None) -> Tensor:
    """Attend with queries (Q, H, D), the last of the text's, to keys and values (T, K, D), in float32."""
    groups = query.shape[1] // keys.shape[1]
    keys, values = (x.float().repeat_interleave(groups, 1) for x in (keys, values))
    scores = torch.einsum("qhd,khd->hqk", query.float(), keys) * scale
    own = torch.arange(len(keys) - len(query), len(keys))[:, None]
    key = torch.arange(len(keys))[None]
    hidden = (key > own) | (key <= own - (window or len(keys) + 1))
    return torch.einsum("hqk,khd->qhd", torch.softmax(scores.masked_fill(hidden, -torch.inf), -1), values)


@needs_kernels
@given(
    texts=st.lists(st.tuples(st.integers(0, 200), st.integers(1, 40)), min_size=1, max_size=4),
    groups=st.sampled_from([1, 3, 8]),
    size=st.sampled_from([32, 64, 96, 128, 256]),
    window=st.sampled_from([None, 1, 16, 100]),
    seed=st.integers(0, 99),
)
def test_attention_to_pages_equals_float32(texts, groups, size, window, seed):
    """Texts of which some tokens are in pages already, and some come now."""
    key_heads, total = 2, 40
    heads = groups * key_heads
    chance = np.random.default_rng(seed)
    free = chance.permutation(total).tolist()
    keys, values = (torch.full((total, key_heads, PAGE_TOKENS, size), torch.nan).bfloat16() for _ in range(2))
    rows = sum(new for _, new in texts)
    together = numbers(rows, heads + 2 * key_heads, size, seed=seed)
    rotation = numbers(rows, 1, size, seed=seed + 1), numbers(rows, 1, size, seed=seed + 2)
    pages, places, slots, expected, first = [], [], [], [], 0
    for old, new in texts:
        own = [free.pop() for _ in range(-(-(old + new) // PAGE_TOKENS))]
        past = numbers(2, old, key_heads, size, seed=seed + old)
        where = [own[place // PAGE_TOKENS] * PAGE_TOKENS + place % PAGE_TOKENS for place in range(old + new)]
        for place in range(len(own) * PAGE_TOKENS):  # what isn't written yet may be anything finite
            keys[own[place // PAGE_TOKENS], :, place % PAGE_TOKENS] = 9
            values[own[place // PAGE_TOKENS], :, place % PAGE_TOKENS] = 9
        for place in range(old):
            keys[where[place] // PAGE_TOKENS, :, where[place] % PAGE_TOKENS] = past[0, place]
            values[where[place] // PAGE_TOKENS, :, where[place] % PAGE_TOKENS] = past[1, place]
        part = slice(first, first + new)
        turned = rotated(together[part].float(), rotation[0][part].float(), rotation[1][part].float()).bfloat16()
        all_keys = torch.cat([past[0], turned[:, heads : heads + key_heads]])
        all_values = torch.cat([past[1], together[part, heads + key_heads :]])
        expected.append(reference(turned[:, :heads], all_keys, all_values, size**-0.5, window))
        pages.append(own)
        places.append((first, old, new))
        slots += where[old:]
        first += new
    attention = NativeAttention(kernels(), pages, places, torch.tensor(slots))
    found = attention.attend(together.clone(), heads, rotation, keys, values, size**-0.5, window)
    assert can_attend(heads, key_heads, size)
    assert (found.view(rows, heads, size).float() - torch.cat(expected)).abs().max() < 0.05
    # Alone, the last text's rows are the same, to the bit.
    part = slice(first - texts[-1][1], first)
    alone = NativeAttention(kernels(), pages[-1:], [(0, *places[-1][1:])], torch.tensor(slots[part]))
    again = alone.attend(
        together[part].clone(), heads, (rotation[0][part], rotation[1][part]), keys, values, size**-0.5, window
    )
    assert torch.equal(again, found[part])


@needs_kernels
def test_what_cannot_be_compiled_is_said_and_done_without(monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    library = build.library.__wrapped__
    assert library() is not None  # it is compiled anew
    assert [path.suffix for path in (tmp_path / "cache/tunesmith/kernels").iterdir()] == [".so"]
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert library() is not None
    assert [path.suffix for path in (tmp_path / "home/kernels").iterdir()] == [".so"]
    monkeypatch.setattr(build, "_FLAGS", ("-no-such-flag",))
    assert library() is None
    assert "can't be compiled" in caplog.text and "no-such-flag" in caplog.text
    monkeypatch.setattr(build.shutil, "which", lambda _: None)
    assert library() is None


def test_one_can_do_without(monkeypatch):
    monkeypatch.setenv("TUNESMITH_NATIVE", "0")
    monkeypatch.setattr(subprocess, "run", None)
    assert build.library.__wrapped__() is None


@needs_kernels
@given(
    rows=st.integers(1, 5),
    size=st.integers(1, 3000),
    values=st.lists(st.sampled_from([0.0, -0.0, 1.0, 2.0, np.nan, np.inf, -np.inf]), min_size=1, max_size=7),
    seed=st.integers(0, 9),
)
def test_the_greatest_is_found_where_numpy_finds_it(rows, size, values, seed):
    drawn = np.random.default_rng(seed).choice(np.array(values, dtype=np.float32), (rows, size))
    places = drawn.argmax(axis=1)
    expected = [place if np.isfinite(row[place]) else -1 for place, row in zip(places, drawn, strict=True)]
    with_gaps = torch.from_numpy(np.concatenate([drawn, drawn + 1], axis=1))[:, :size]
    assert kernels().likeliest(with_gaps).tolist() == expected
    assert kernels().likeliest(torch.from_numpy(np.ascontiguousarray(drawn.T)).t()).tolist() == expected
