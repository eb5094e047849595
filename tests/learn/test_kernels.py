"""The kernels give what the layers that they take over give, forward and backward, in every family."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_models import FAMILIES, tiny_model
from tunesmith.learn.kernels.install import copy_weights, use_kernels
from tunesmith.learn.kernels.rms_norm import rms_norm
from tunesmith.learn.kernels.rotation import use_rotation
from tunesmith.models.adapters.lora import add_lora
from tunesmith.models.adapters.lora_layer import LoraLinear
from tunesmith.models.adapters.panels import Panels
from tunesmith.native.calls import kernels
from tunesmith.specs.tune import LoraSpec

#: How many normalisations, feed-forward layers and groups of query, key and value of the tiny models take kernels.
EXPECTED = {
    "smollm2": (5, 2, 2), "llama": (5, 2, 2), "qwen2": (5, 2, 2), "qwen3": (9, 2, 2), "mistral": (5, 2, 2),
    "gemma2": (9, 2, 2), "gemma3": (19, 3, 3), "phi3": (5, 0, 0), "gpt2": (0, 0, 0), "mixtral": (5, 0, 2),
    "qwen3_moe": (9, 0, 2),
}  # fmt: skip


def adapted(family, **settings):
    torch.manual_seed(0)
    model = tiny_model(family).float()
    adapter = add_lora(model, LoraSpec(rank=3, **settings))
    for group in adapter.parameter_groups():
        for parameter in group.parameters:
            parameter.data.normal_(0, 0.1)
    return model, adapter


def loss_and_gradients(model, adapter, rows=2):
    parameters = [p for group in adapter.parameter_groups() for p in group.parameters]
    ids = torch.randint(3, 60, (rows, 17), generator=torch.Generator().manual_seed(1))
    loss = model(ids, labels=ids).loss
    return loss, torch.autograd.grad(loss, parameters)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_model_with_kernels_computes_the_same(family):
    """Float32: the loss within 1e-6, each matrix's gradient within 3e-5 of its length (two orders of rounding)."""
    model, adapter = adapted(family)
    loss, grads = loss_and_gradients(model, adapter)
    use_kernels(model)
    own_loss, own_grads = loss_and_gradients(model, adapter)
    assert own_loss.item() == pytest.approx(loss.item(), rel=1e-6)
    for own, grad in zip(own_grads, grads, strict=True):
        assert (own - grad).norm() <= 3e-5 * grad.norm() + 1e-9


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_layer_that_has_a_kernel_gets_it(family):
    model, _ = adapted(family)
    use_kernels(model)
    use_kernels(model)
    taken = [(name, type(module).__name__) for name, module in model.named_modules() if "forward" in vars(module)]
    norms = sum("norm" in kind.lower() for _, kind in taken)
    mlps = sum(kind.lower().endswith("mlp") for _, kind in taken)
    groups = sum(name.endswith("q_proj") for name, _ in taken)
    assert (norms, mlps, groups) == EXPECTED[family]


@pytest.mark.parametrize("extra", [{"dropout": 0.5}, {"dora": True}, {"initialisation": "pissa"}])
def test_adapters_that_compute_more_keep_their_own_way(extra):
    model, adapter = adapted("llama", **extra)
    model.train()
    torch.manual_seed(5)
    loss, grads = loss_and_gradients(model, adapter)
    use_kernels(model)
    torch.manual_seed(5)
    own_loss, own_grads = loss_and_gradients(model, adapter)
    assert own_loss.item() == pytest.approx(loss.item(), rel=1e-6)
    for own, grad in zip(own_grads, grads, strict=True):
        assert (own - grad).norm() <= 3e-5 * grad.norm() + 1e-9


def test_a_merged_model_is_a_plain_one_again():
    model, adapter = adapted("llama")
    use_kernels(model)
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        before = model(ids).logits
        adapter.merge()
        after = model(ids).logits
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def test_query_key_and_value_may_also_be_asked_out_of_turn():
    model, _ = adapted("llama")
    attention = model.model.layers[0].self_attn
    names = ("q_proj", "k_proj", "v_proj")
    x, other = torch.randn(2, 5, model.config.hidden_size), torch.randn(1, 3, model.config.hidden_size)
    true = {name: getattr(attention, name)(x) for name in names}
    true_other = attention.k_proj(other)
    use_kernels(model)
    torch.testing.assert_close(attention.v_proj(x), true["v_proj"])
    torch.testing.assert_close(attention.k_proj(other), true_other)
    torch.testing.assert_close(attention.k_proj(x), true["k_proj"])
    torch.testing.assert_close(attention.k_proj(x), true["k_proj"])
    torch.testing.assert_close(attention.q_proj(x), true["q_proj"])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 40), st.booleans(), st.integers(0, 99))
def test_the_norm_and_its_gradient_are_those_of_its_formula(rows, width, adds_one, seed):
    """Float64, 1e-10."""
    torch.manual_seed(seed)
    x = torch.randn(rows, width, dtype=torch.float64, requires_grad=True)
    weight, grad = torch.randn(width, dtype=torch.float64), torch.randn(rows, width, dtype=torch.float64)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (weight + adds_one)
    found = rms_norm(x, weight, 1e-6, adds_one=adds_one)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        torch.autograd.grad(found, x, grad), torch.autograd.grad(expected, x, grad), rtol=1e-10, atol=1e-10
    )


def distance(found, exact):
    """The mean relative error of the gradients."""
    return torch.stack([(a - b).norm() / b.norm() for a, b in zip(found[1], exact[1], strict=True)]).mean()


def in_bfloat16(family, **traits):
    """A model in bfloat16 whose widths the kernels in C take."""
    torch.manual_seed(0)
    model = tiny_model(family, **traits).bfloat16()
    adapter = add_lora(model, LoraSpec(rank=4, alpha=6))
    for group in adapter.parameter_groups():
        for parameter in group.parameters:
            parameter.data.normal_(0, 0.1)
    return model, adapter


@pytest.mark.parametrize("family", ["smollm2", "qwen2", "qwen3", "gemma3", "phi3", "gpt2"])
def test_kernels_in_c_are_as_exact_as_what_they_replace(family):
    """Bfloat16: the distance from float64 is at most 1.2 times that of PyTorch's own operations."""
    model, adapter = in_bfloat16(family)
    layers = [one for one in model.modules() if isinstance(one, LoraLinear)]
    plain = loss_and_gradients(model, adapter)
    use_kernels(model)
    assert all(one.panels is None for one in layers)
    copy_weights(model, True)
    if kernels() is not None:
        assert all(one.panels is not None for one in layers)
    own = loss_and_gradients(model, adapter)
    copy_weights(model, False)
    assert all(one.panels is None for one in layers)
    exact = loss_and_gradients(model.double(), adapter)
    assert distance(own, exact) <= 1.2 * distance(plain, exact) + 1e-3
    assert abs(own[0].double() - exact[0]) <= 1.2 * abs(plain[0].double() - exact[0]) + 0.02


@pytest.mark.skipif(kernels() is None, reason="no C compiler, or a processor without AVX512-BF16")
@pytest.mark.parametrize("family", ["smollm2", "llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "mixtral"])
def test_positions_are_turned_by_the_kernel(family, monkeypatch):
    """Bfloat16, one row of heads that the kernel takes: as close to float32 as with PyTorch's own operations."""
    model, adapter = in_bfloat16(family, head_dim=32)
    plain = loss_and_gradients(model, adapter, rows=1)
    attentions = [layer.self_attn for layer in model.model.layers]
    assert all(use_rotation(one) for one in attentions) and not any(use_rotation(one) for one in attentions)
    turned, rotate = [], kernels().rotate
    monkeypatch.setattr(kernels(), "rotate", lambda *x, **named: turned.append(named) or rotate(*x, **named))
    own = loss_and_gradients(model, adapter, rows=1)
    assert turned == [{}] * 2 * len(attentions) + [{"goes_back": True}] * 2 * len(attentions)
    exact = loss_and_gradients(model.float(), adapter, rows=1)
    assert len(turned) == 4 * len(attentions)  # what the kernel doesn't take goes through PyTorch
    assert distance(own, exact) <= 1.2 * distance(plain, exact) + 1e-3


def test_odd_ranks_and_biases_go_through_the_kernels_too():
    torch.manual_seed(0)
    linear = torch.nn.Linear(48, 80).bfloat16().requires_grad_(False)
    layer = LoraLinear(linear, LoraSpec(rank=3, alpha=5))
    torch.nn.init.normal_(layer.lora_b)
    x, grad = torch.randn(37, 48).bfloat16().requires_grad_(), torch.randn(37, 80).bfloat16()

    def computed():
        return torch.autograd.grad(layer(x), (x, layer.lora_a, layer.lora_b), grad)

    expected = [layer(x), *computed()]
    layer.panels = Panels.of(linear)
    for found, wanted in zip([layer(x), *computed()], expected, strict=True):
        assert (found.float() - wanted.float()).norm() <= 0.01 * wanted.float().norm()
