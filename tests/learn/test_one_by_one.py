"""Architectures whose layers can't take a tree: found out by trying, and their rows computed one at a time, exactly."""

from __future__ import annotations

import pytest
import torch

from lone_models import LONE, lone_model
from tiny_models import FAMILIES, tiny_model
from trees import shared_rows
from tunesmith.chat.renderer import Rendered
from tunesmith.errors import ModelError
from tunesmith.learn.step import TreeModel
from tunesmith.learn.tree import build_tree
from tunesmith.models.quiet import quiet_libraries
from tunesmith.models.side_by_side import why_one_by_one


@pytest.mark.parametrize("kind", LONE)
def test_rows_that_go_one_at_a_time_are_exact(kind):
    model = lone_model(kind)
    own = model.config._attn_implementation
    rows = [*shared_rows()[::3], Rendered((5,), (True,)), Rendered((7, 9), (False, True))]
    rows.append(rows[0])
    model.get_input_embeddings().requires_grad_(False)
    model.get_output_embeddings().requires_grad_(False)
    weights = [weight for weight in model.parameters() if weight.requires_grad]

    true_loss = 0.0
    for row in rows:
        ids = torch.tensor([row.token_ids])
        labels = torch.where(torch.tensor([row.learnt]), ids, -100)[0, 1:]
        if len(labels):
            with quiet_libraries():
                logits = model(ids).logits[0, :-1].float()
            loss = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
            loss.backward()
            true_loss += loss.item()
    true_gradients = [torch.zeros_like(w) if w.grad is None else w.grad.clone() for w in weights]
    model.zero_grad()

    with quiet_libraries():
        wrapped = TreeModel.of(model)
        loss, losses = wrapped.loss(build_tree(rows))
    assert LONE[kind][0] in wrapped.one_by_one_because
    assert model.config._attn_implementation == own
    loss.backward()
    assert loss.item() == pytest.approx(true_loss, rel=1e-5)
    assert not losses.requires_grad
    largest = max(float(gradient.norm()) for gradient in true_gradients)
    for weight, true in zip(weights, true_gradients, strict=True):
        found = torch.zeros_like(weight) if weight.grad is None else weight.grad
        assert float((found - true).norm()) <= 1e-5 * max(float(true.norm()), largest)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_takes_trees_is_recognised(family):
    model = tiny_model(family)
    assert why_one_by_one(model) is None
    assert why_one_by_one(tiny_model(family).to(torch.bfloat16)) is None


def test_windows_that_attention_is_not_told_of_are_noticed():
    """Such a model slides by its mask alone, and a layout would let every token see all."""
    settings = {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 4}
    assert "sliding windows" in why_one_by_one(lone_model("phimoe", **settings))
    assert why_one_by_one(lone_model("phimoe", **settings | {"sliding_window": None})) is None


def test_layers_that_mix_neighbours_are_noticed():
    """No word in the config says so: only trying shows it."""
    model = tiny_model("llama")
    block = model.model.layers[1]
    block.mlp.register_forward_hook(lambda module, inputs, output: output + 0.1 * inputs[0].roll(1, dims=1))
    assert "change each other" in why_one_by_one(model)
    model = tiny_model("llama").to(torch.bfloat16)
    for block in model.model.layers:
        block.mlp.register_forward_hook(lambda module, inputs, output: output + inputs[0].roll(3, dims=1))
    assert "change each other" in why_one_by_one(model)


def test_logits_that_are_no_projection_are_refused():
    model = tiny_model("llama")
    model.lm_head.register_forward_hook(lambda module, inputs, output: output.roll(1, dims=-1))
    with pytest.raises(ModelError, match="logits in a way of its own"):
        TreeModel.of(model)
