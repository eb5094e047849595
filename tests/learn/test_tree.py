"""A tree's loss and gradients are those of its rows one by one, in every family and number format."""

from __future__ import annotations

from functools import cache, partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, Gemma2Config

from tiny_models import FAMILIES, WINDOW_TOKENS, tiny_model
from tunesmith.chat.renderer import Rendered
from tunesmith.errors import ModelError
from tunesmith.learn import attention
from tunesmith.learn.loss import projected_cross_entropy
from tunesmith.learn.step import TreeModel
from tunesmith.learn.tree import build_tree
from tunesmith.models.adapters.lora import LoraAdapter, add_lora
from tunesmith.models.attention import use_layout_attention
from tunesmith.models.projection import Projection
from tunesmith.specs.tune import LoraSpec

_FAMILIES = [*FAMILIES, "gemma2"]


@st.composite
def batches(draw, longest: int = 14):
    """Sequences that share beginnings at several depths, equal ones, ones that go on where another ends, short ones."""
    token, grown = st.integers(3, 6), []
    for _ in range(draw(st.integers(1, 7))):
        begin = list(draw(st.sampled_from(grown))) if grown and draw(st.booleans()) else []
        begin = begin[: draw(st.integers(0, len(begin)))] if draw(st.booleans()) else begin
        grown.append(tuple(begin + draw(st.lists(token, min_size=0 if begin else 1, max_size=longest))))
    return [Rendered(ids, tuple(draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids))))) for ids in grown]


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


@cache
def adapted(family: str, dtype: torch.dtype, rounded_to: torch.dtype) -> tuple[TreeModel, LoraAdapter]:
    """A tiny model with an adapter that already says something."""
    if family == "gemma2":
        config = Gemma2Config(
            vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, sliding_window=WINDOW_TOKENS, attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0, query_pre_attn_scalar=16, initializer_range=0.1,
        )  # fmt: skip
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
    else:
        model = tiny_model(family)
    torch.manual_seed(1)
    adapter = add_lora(model, LoraSpec(rank=3, alpha=8, dropout=0.0))
    for layer in adapter.layers.values():
        torch.nn.init.normal_(layer.lora_b, std=0.2)
    model.to(rounded_to).to(dtype)
    if dtype == torch.float64:
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                module.forward = partial(exact_norm, module)
    return TreeModel.of(model), adapter


def one_by_one(family: str, rows, dtype: torch.dtype, rounded_to: torch.dtype) -> tuple[float, list[torch.Tensor]]:
    """Loss and gradients by transformers, row by row."""
    wrapped, adapter = adapted(family, dtype, rounded_to)
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
    return total, gradients(adapter)


def as_tree(family: str, rows, dtype: torch.dtype, rounded_to: torch.dtype) -> tuple[float, list[torch.Tensor]]:
    wrapped, adapter = adapted(family, dtype, rounded_to)
    wrapped.model.zero_grad()
    use_layout_attention(wrapped.model)
    loss, _ = wrapped.loss(build_tree(rows))
    if loss.requires_grad:
        loss.backward()
    return loss.item(), gradients(adapter)


def gradients(adapter: LoraAdapter) -> list[torch.Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in adapter.parameter_groups()[0].parameters]


def assert_alike(family: str, rows, dtype: torch.dtype, loss_error: float, gradient_error: float) -> None:
    loss, grads = as_tree(family, rows, dtype, dtype)
    true_loss, true_grads = one_by_one(family, rows, dtype, dtype)
    assert loss == pytest.approx(true_loss, rel=loss_error, abs=loss_error)
    largest = max(float(g.norm()) for g in true_grads)
    for grad, true in zip(grads, true_grads, strict=True):
        assert float((grad - true).norm()) <= gradient_error * max(float(true.norm()), 1e-2 * largest)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(_FAMILIES), batches(longest=24))
def test_a_tree_is_its_rows_one_by_one(family, rows):
    assert_alike(family, rows, torch.float64, 1e-9, 1e-9)


def shared_rows(seed: int = 0) -> list[Rendered]:
    """Ten rows of one long beginning, in two groups, longer than all sliding windows."""
    random = torch.Generator().manual_seed(seed)

    def text(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 300, (count,), generator=random).tolist())

    system, rows = text(24), []
    for group in (text(11), text(17)):
        for count in (1, 5, 20, 33, 60):
            ids = (*system, *group, *text(count))
            rows.append(Rendered(ids, tuple(i >= len(ids) - count for i in range(len(ids)))))
    return rows


@pytest.mark.parametrize("family", _FAMILIES)
def test_rows_longer_than_the_sliding_windows(family):
    assert_alike(family, shared_rows(), torch.float64, 1e-9, 1e-9)
    assert_alike(family, shared_rows(), torch.float32, 1e-5, 1e-4)


@pytest.mark.parametrize("family", _FAMILIES)
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
        patch.setattr(attention, "_MAX_SCORES", max_scores)
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
    model, _ = adapted("qwen3", torch.float32, torch.float32)
    use_layout_attention(model.model)
    tree = build_tree(shared_rows())
    loss, losses = model.loss(tree)
    assert model.loss_sum(tree) == loss.item()
    assert float((losses * tree.target_weight).sum()) == pytest.approx(loss.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "settings", "why"),
    [
        ("mamba", {"state_size": 4, "num_hidden_layers": 1, "hidden_size": 8}, "linear_attention"),
        ("lfm2", {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2,
                  "intermediate_size": 16, "full_attn_idxs": [1]}, "conv"),
        ("gptj", {"n_embd": 8, "n_layer": 1, "n_head": 2, "rotary_dim": 4}, "an attention of its own"),
    ],
)  # fmt: skip
def test_architectures_that_a_tree_would_get_wrong_are_refused(kind, settings, why):
    config = AutoConfig.for_model(kind, vocab_size=20, pad_token_id=0, bos_token_id=0, eos_token_id=0, **settings)
    with pytest.raises(ModelError, match=why):
        TreeModel.of(AutoModelForCausalLM.from_config(config))


def test_attention_sinks_are_refused():
    """They would be left out of the softmax without a word."""
    config = AutoConfig.for_model(
        "gpt_oss", vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, num_local_experts=2, num_experts_per_tok=1, pad_token_id=0,
    )  # fmt: skip
    model = TreeModel.of(AutoModelForCausalLM.from_config(config))
    with pytest.raises(ModelError, match="attention sinks"):
        model.loss_sum(build_tree([Rendered((1, 2, 3), (False, True, True))]))
