"""One adapted layer against the formulas written out with plain autograd, in float64, for each mix of settings."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tunesmith.models.adapters.frozen import weight_of
from tunesmith.models.adapters.lora import LoraLinear
from tunesmith.models.adapters.lora_products import Drop
from tunesmith.models.quantised import Nf4Linear
from tunesmith.specs.tune import LoraSpec

_IN, _OUT = 10, 7


def linear(kind: str) -> nn.Module:
    torch.manual_seed(1)
    layer = Conv1D(_OUT, _IN) if kind == "conv1d" else nn.Linear(_IN, _OUT, bias=kind == "linear")
    nn.init.normal_(layer.weight, std=0.5)
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    return layer.requires_grad_(False)


def adapted(kind: str, **settings) -> LoraLinear:
    """A layer in float64 whose adapter is no longer what it began as."""
    layer = LoraLinear(linear(kind), LoraSpec(rank=3, alpha=5, **settings)).double()
    with torch.no_grad():
        for parameter in (layer.lora_a, layer.lora_b, layer.magnitude):
            if parameter is not None:
                parameter += 0.3 * torch.randn_like(parameter)
    return layer


def written_out(layer: LoraLinear, x: torch.Tensor) -> torch.Tensor:
    """What PEFT computes (its residual weight made by hand), with this library's dropout mask."""
    weight = weight_of(layer.linear)
    if layer.initial is not None:
        a0, b0 = layer.initial
        weight = weight - layer.scale * b0 @ a0
    bias = 0 if layer.linear.bias is None else layer.linear.bias
    result = x @ weight.t() + bias
    kept = x
    if layer.dropout is not None:
        kept = x * Drop.draw(layer.dropout.p).mask(x.reshape(-1, _IN)).view(x.shape)
    low = layer.scale * kept @ layer.lora_a.t() @ layer.lora_b.t()
    if layer.magnitude is None:
        return result + low
    norm = (weight + layer.scale * layer.lora_b @ layer.lora_a).norm(dim=1).detach()
    factors = layer.magnitude / norm
    return result + (factors - 1) * (kept @ weight.t()) + factors * low


@pytest.mark.parametrize("kind", ["linear", "unbiased", "conv1d"])
@pytest.mark.parametrize(("dora", "dropout", "pissa"), [*itertools.product([False, True], [0.0, 0.4], [False, True])])
def test_output_and_gradients_are_those_of_the_formulas(kind, dora, dropout, pissa):
    layer = adapted(kind, dora=dora, dropout=dropout, initialisation="pissa" if pissa else "zero")
    parameters = [p for p in (layer.lora_a, layer.lora_b, layer.magnitude) if p is not None]
    results = []
    for compute in (layer, lambda x: written_out(layer, x)):
        x = torch.linspace(-1, 1, 2 * 4 * _IN, dtype=torch.float64).sin().view(2, 4, _IN).requires_grad_()
        torch.manual_seed(5)
        out = compute(x)
        gradients = torch.autograd.grad((out * out.detach().cos()).sum(), [x, *parameters])
        results.append([out.detach(), *gradients])
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize(
    "settings", [{}, {"dora": True}, {"initialisation": "pissa"}, {"rank_stabilised": True}], ids=str
)
def test_merged_layers_do_the_same(kind, settings):
    layer = adapted(kind, **settings)
    x = torch.randn(4, _IN, dtype=torch.float64)
    expected = layer(x).detach()
    merged = layer.merged()
    assert merged is layer.linear
    torch.testing.assert_close(merged(x), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("settings", [{"dora": True}, {"initialisation": "pissa"}, {"dropout": 0.3}], ids=str)
def test_weights_in_four_bits_take_every_setting(settings):
    """Outputs, gradients and the merged layer are those on the same weights kept plain."""
    packed = Nf4Linear(linear("linear"), double_quantisation=True)
    results = []
    for base in (packed, packed.plain()):
        torch.manual_seed(2)
        layer = LoraLinear(base, LoraSpec(rank=3, alpha=5, **settings))
        x = torch.randn(4, _IN, requires_grad=True)
        out = layer(x)
        results.append([out, *torch.autograd.grad(out.cos().sum(), [x, layer.lora_a, layer.lora_b])])
        layer.settle()
        with torch.no_grad():
            results[-1] += [layer.eval()(x), layer.merged().weight]
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rank", [3, 20])
@pytest.mark.parametrize("dora", [False, True])
def test_principal_parts_begin_without_effect_and_hold_what_is_largest(rank, dora):
    plain = linear("linear")
    layer = LoraLinear(plain, LoraSpec(rank=rank, alpha=5, initialisation="pissa", dora=dora))
    x = torch.randn(4, _IN)
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-5, atol=1e-5)
    rest = plain.weight - layer.scale * layer.lora_b.detach() @ layer.lora_a.detach()
    values = torch.linalg.svdvals(plain.weight)
    torch.testing.assert_close(torch.linalg.svdvals(rest)[: max(0, 7 - rank)], values[rank:], rtol=1e-2, atol=1e-4)
    assert not layer.is_plain


def test_a_mask_drops_the_share_that_was_asked_and_keeps_the_mean():
    like = torch.empty(1000, 101)
    mask = Drop(0.25, seed=7).mask(like)
    assert sorted(mask.unique().tolist()) == pytest.approx([0, 4 / 3])
    assert (mask == 0).float().mean() == pytest.approx(0.25, abs=0.01)
    assert torch.equal(mask, Drop(0.25, seed=7).mask(like))
    neighbours = torch.corrcoef(torch.stack([mask.flatten()[:-1], mask.flatten()[1:]]))[0, 1]
    assert abs(neighbours) < 0.02


def test_only_layers_that_are_all_of_it_are_plain():
    assert LoraLinear(linear("linear"), LoraSpec()).is_plain
    assert LoraLinear(linear("conv1d"), LoraSpec(rank_stabilised=True)).is_plain
    assert not LoraLinear(linear("linear"), LoraSpec(dropout=0.1)).is_plain
    assert not LoraLinear(linear("linear"), LoraSpec(dora=True)).is_plain


def test_nothing_of_the_inputs_size_is_kept_for_the_backward_pass_but_the_input():
    layer = adapted("linear", dropout=0.5)
    kept: list[torch.Tensor] = []
    x = torch.randn(64, _IN, dtype=torch.float64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    assert sum(t.numel() for t in kept) == x.numel() + layer.lora_a.numel() + layer.lora_b.numel() + 64 * 3
