"""A tree's loss and gradients are those of its rows one by one, in every family and number format."""

from __future__ import annotations

from functools import cache, partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AttentionInterface

from tiny_models import FAMILIES, tiny_model
from trees import batches, shared_rows
from tunesmith.learn import attention
from tunesmith.learn.loss import projected_cross_entropy
from tunesmith.learn.step import TreeModel
from tunesmith.learn.tree import build_tree
from tunesmith.models.attention import use_layout_attention
from tunesmith.models.projection import Projection


def exact_attention(module, query, key, value, mask, scaling, sliding_window=None, softcap=None, **_):
    """Causal attention of one row, written out; transformers' own rounds its softmax to float32."""
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    scores = query @ key.transpose(-1, -2) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    place = torch.arange(query.shape[2])
    distance = place[:, None] - place
    seen = (distance >= 0) & (distance < (sliding_window or 10**9))
    return (scores.masked_fill(~seen, float("-inf")).softmax(-1) @ value).transpose(1, 2), None


AttentionInterface.register("exact_attention", exact_attention)


def exact_norm(module, x):
    """RMSNorm; transformers' own rounds to float32."""
    epsilon = getattr(module, "variance_epsilon", None) or module.eps
    weight = module.weight + 1 if type(module).__name__.startswith("Gemma") else module.weight
    return x * (x.square().mean(-1, keepdim=True) + epsilon).rsqrt() * weight


def exact_router(module, x):
    """The choice of experts of Mixtral and Qwen 3; transformers' own rounds its softmax to float32."""
    scores, experts = torch.nn.functional.linear(x, module.weight).softmax(-1).topk(module.top_k)
    if getattr(module, "norm_topk_prob", True):
        scores = scores / scores.sum(-1, keepdim=True)
    return None, scores, experts


@cache
def trained(family: str, dtype: torch.dtype, rounded_to: torch.dtype) -> tuple[TreeModel, list[torch.nn.Parameter]]:
    """A tiny model and all its weights but the vocabulary's, which are trained."""
    model = tiny_model(family).to(rounded_to).to(dtype)
    model.requires_grad_(True)
    for vocabulary in (model.get_input_embeddings(), model.get_output_embeddings()):
        vocabulary.requires_grad_(False)
    if dtype == torch.float64:
        if family in ("mixtral", "qwen3_moe"):
            model.set_experts_implementation("eager")  # the faster ones know no float64
        for module in model.modules():
            kind = type(module).__name__
            if kind.endswith("RMSNorm"):
                module.forward = partial(exact_norm, module)
            if kind.endswith("TopKRouter"):
                module.forward = partial(exact_router, module)
    return TreeModel.of(model), [weight for weight in model.parameters() if weight.requires_grad]


def one_by_one(family: str, rows, dtype: torch.dtype, rounded_to: torch.dtype) -> tuple[float, list[torch.Tensor]]:
    """Loss and gradients by transformers, row by row."""
    wrapped, weights = trained(family, dtype, rounded_to)
    model = wrapped.model
    model.zero_grad()
    model.set_attn_implementation("exact_attention" if dtype == torch.float64 else "eager")
    total = 0.0
    for row in rows:
        ids = torch.tensor([row.token_ids])
        labels = torch.where(torch.tensor([row.learnt]), ids, -100)[0, 1:]
        if (labels >= 0).any():
            logits = model(ids).logits[0, :-1]
            logits = logits.to(torch.promote_types(dtype, torch.float32))
            loss = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
            loss.backward()
            total += loss.item()
    return total, gradients(weights)


def as_tree(family: str, rows, dtype: torch.dtype, rounded_to: torch.dtype) -> tuple[float, list[torch.Tensor]]:
    wrapped, weights = trained(family, dtype, rounded_to)
    wrapped.model.zero_grad()
    use_layout_attention(wrapped.model)
    loss, _ = wrapped.loss(build_tree(rows))
    if loss.requires_grad:
        loss.backward()
    return loss.item(), gradients(weights)


def gradients(weights: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    return [torch.zeros_like(w) if w.grad is None else w.grad.clone() for w in weights]


def assert_alike(family: str, rows, dtype: torch.dtype, loss_error: float, gradient_error: float) -> None:
    loss, grads = as_tree(family, rows, dtype, dtype)
    true_loss, true_grads = one_by_one(family, rows, dtype, dtype)
    assert loss == pytest.approx(true_loss, rel=loss_error, abs=loss_error)
    largest = max(float(g.norm()) for g in true_grads)
    for grad, true in zip(grads, true_grads, strict=True):
        assert float((grad - true).norm()) <= gradient_error * max(float(true.norm()), 1e-2 * largest)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(sorted(FAMILIES)), batches(longest=24))
def test_a_tree_is_its_rows_one_by_one(family, rows):
    assert_alike(family, rows, torch.float64, 1e-9, 1e-9)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(FAMILIES)), batches(longest=40))
def test_a_tree_is_its_rows_one_by_one_in_float32(family, rows):
    assert_alike(family, rows, torch.float32, 1e-5, 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_longer_than_the_sliding_windows(family):
    assert_alike(family, shared_rows(), torch.float64, 1e-9, 1e-9)
    assert_alike(family, shared_rows(), torch.float32, 1e-5, 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_rounds_no_worse_than_rows_one_by_one(family):
    rows, half = shared_rows(), torch.bfloat16
    true_loss, true_grads = one_by_one(family, rows, torch.float64, half)

    def error(found: tuple[float, list[torch.Tensor]]) -> float:
        pairs = zip(found[1], true_grads, strict=True)
        return sum(float((grad - true).square().sum()) for grad, true in pairs) ** 0.5

    assert as_tree(family, rows, half, half)[0] == pytest.approx(true_loss, rel=0.02)
    assert error(as_tree(family, rows, half, half)) < 2 * error(one_by_one(family, rows, half, half))


def test_what_is_shared_is_computed_once():
    rows = shared_rows()
    tree = build_tree(rows)
    assert tree.row_tokens == sum(len(row.token_ids) for row in rows)
    assert len(tree.token_ids) == 24 + 11 + 17 + 2 * (1 + 5 + 20 + 33 + 60)
    assert len(build_tree([rows[0]] * 3).token_ids) == len(rows[0].token_ids)
    assert build_tree([rows[0]] * 3).learnt_tokens == 3


@settings(max_examples=200, deadline=None)
@given(batches())
def test_a_tree_holds_every_sequence_and_target(rows):
    """Each sequence can be read along one path, and each learnt token is counted once for each of its sequences."""
    tree = build_tree(rows)
    paths = set()
    for segment in tree.segments:
        path = [*(tree.segments[a] for a in segment.ancestors), segment]
        ids = [t for s in path for t in tree.token_ids[s.start : s.start + s.length].tolist()]
        places = [t for s in path for t in tree.positions[s.start : s.start + s.length].tolist()]
        assert places == list(range(len(ids)))
        paths |= {tuple(ids[:end]) for end in range(1, len(ids) + 1)}
    assert {row.token_ids for row in rows} <= paths
    assert tree.learnt_tokens == sum(sum(row.learnt[1:]) for row in rows)
    assert len(tree.token_ids) <= tree.row_tokens


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 9), st.sampled_from([1, 40, 10**9]), st.sampled_from([1.0, 1.3, 1e9]))
def test_sizes_of_blocks_never_change_the_result(block_queries, max_scores, max_padding):
    true_loss, true_grads = as_tree("gemma3", shared_rows(), torch.float64, torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_BLOCK_QUERIES", block_queries)
        patch.setattr(attention, "MAX_SCORES", max_scores)
        patch.setattr(attention, "_MAX_PADDING", max_padding)
        loss, grads = as_tree("gemma3", shared_rows(), torch.float64, torch.float64)
    assert loss == pytest.approx(true_loss, rel=1e-11)
    torch.testing.assert_close(grads, true_grads, rtol=1e-9, atol=1e-11)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 20), st.integers(1, 25), st.booleans(), st.sampled_from([None, 2.0]), st.sampled_from([1.0, 0.3]))
def test_the_chunked_loss_is_the_cross_entropy(targets, chunk_tokens, has_bias, softcap, scale):
    torch.manual_seed(targets)
    hidden = torch.randn(targets, 6, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(11, dtype=torch.float64) if has_bias else None
    projection = Projection(torch.randn(11, 6, dtype=torch.float64), bias, scale, softcap)
    ids, weights = torch.randint(0, 11, (targets,)), torch.randint(1, 4, (targets,)).float()
    total, losses = projected_cross_entropy(hidden, projection, ids, weights, chunk_tokens=chunk_tokens)
    logits = (hidden @ projection.weight.t() + (0 if bias is None else bias)) * scale
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    true_losses = torch.nn.functional.cross_entropy(logits, ids, reduction="none")
    torch.testing.assert_close(losses, true_losses.detach())
    torch.testing.assert_close(total, (true_losses * weights).sum())
    assert not losses.requires_grad
    true_grad, grad = (torch.autograd.grad(t * 3, hidden)[0] for t in ((true_losses * weights).sum(), total))
    torch.testing.assert_close(grad, true_grad)


def test_validation_and_training_see_the_same_loss():
    model, _ = trained("qwen3", torch.float32, torch.float32)
    use_layout_attention(model.model)
    tree = build_tree(shared_rows())
    loss, losses = model.loss(tree)
    assert model.loss_sum(tree) == loss.item()
    assert float((losses * tree.target_weight).sum()) == pytest.approx(loss.item(), rel=1e-6)
