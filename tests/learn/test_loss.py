"""The chunked loss against PyTorch's own cross entropy over whole logits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.learn.loss import default_chunk_tokens, projected_cross_entropy
from tunesmith.models.projection import Projection

cases = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**20),
        "targets": st.integers(0, 40),
        "vocabulary": st.integers(2, 90),
        "chunk": st.sampled_from([None, 1, 7, 17, 64]),
        "bias": st.booleans(),
        "scale": st.sampled_from([1.0, 0.125]),
        "softcap": st.sampled_from([None, 3.0]),
        "smoothing": st.sampled_from([0.0, 0.1]),
        "trains_head": st.booleans(),
    }
)


def whole(hidden, weight, bias, case):
    logits = torch.nn.functional.linear(hidden, weight, bias) * case["scale"]
    return logits if case["softcap"] is None else case["softcap"] * torch.tanh(logits / case["softcap"])


@settings(max_examples=80, deadline=None)
@given(cases)
def test_sum_losses_and_gradients_equal_those_over_whole_logits(case):
    """Float64, 1e-10: the same sum and the same gradients of hidden states, weight and bias."""
    torch.manual_seed(case["seed"])
    size, vocabulary = case["targets"], case["vocabulary"]
    hidden = torch.randn(size, 12, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(vocabulary, 12, dtype=torch.float64, requires_grad=case["trains_head"])
    bias = torch.randn(vocabulary, dtype=torch.float64, requires_grad=case["trains_head"]) if case["bias"] else None
    targets = torch.randint(vocabulary, (size,))
    factors = torch.randint(1, 5, (size,)).double()
    projection = Projection(weight, bias, case["scale"], case["softcap"])
    leaves = [leaf for leaf in (hidden, weight, bias) if leaf is not None and leaf.requires_grad]

    hits = torch.full((size,), -1.0)

    total, losses = projected_cross_entropy(
        hidden, projection, targets, factors, chunk_tokens=case["chunk"], label_smoothing=case["smoothing"], hits=hits
    )
    ours = torch.autograd.grad(3 * total, leaves)

    logits = whole(hidden, weight, bias, case)
    smoothed = torch.nn.functional.cross_entropy(logits, targets, reduction="none", label_smoothing=case["smoothing"])
    reference = (smoothed * factors).sum()
    theirs = torch.autograd.grad(3 * reference, leaves)
    plain = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(total, reference, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(losses, plain.detach(), rtol=1e-10, atol=1e-10)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    assert torch.equal(hits, (logits.argmax(-1) == targets).float())


def test_bfloat16_is_as_close_as_its_own_rounding():
    """The gradient of hidden states stays within a few of bfloat16's last bits (2^-8) of float32's."""
    torch.manual_seed(1)
    hidden, weight = torch.randn(50, 32), torch.randn(3000, 32) * 0.1
    targets = torch.randint(3000, (50,))
    grads = []
    for dtype in (torch.float32, torch.bfloat16):
        leaf = hidden.bfloat16().to(dtype).requires_grad_()
        projection = Projection(weight.bfloat16().to(dtype), None, 1.0, None)
        total, _ = projected_cross_entropy(leaf, projection, targets, torch.ones(50))
        grads.append(torch.autograd.grad(total, leaf)[0].float())
    assert (grads[0] - grads[1]).norm() < 0.01 * grads[0].norm()


def test_a_target_that_is_all_but_impossible_has_a_finite_loss_and_gradient():
    hidden = torch.full((1, 2), 100.0, requires_grad=True)
    projection = Projection(torch.tensor([[100.0, 100.0], [-100.0, -100.0]]), None, 1.0, None)
    total, losses = projected_cross_entropy(hidden, projection, torch.tensor([1]), torch.ones(1))
    total.backward()
    assert losses.item() == pytest.approx(40_000.0)
    assert torch.isfinite(hidden.grad).all()


@pytest.mark.parametrize("vocabulary", [32_000, 49_152, 151_936, 262_144])
def test_what_exists_at_once_does_not_grow_with_targets_times_vocabulary(vocabulary):
    projection = Projection(torch.empty(vocabulary, 1, dtype=torch.bfloat16), None, 1.0, None)
    assert default_chunk_tokens(projection) * vocabulary * 2 <= max(16 << 20, 128 * vocabulary * 2)


def test_a_head_in_float32_serves_hidden_states_in_bfloat16():
    """The same loss as with a rounded head; the head's gradient stays in float32."""
    torch.manual_seed(2)
    hidden, targets, factors = torch.randn(5, 8).bfloat16(), torch.randint(30, (5,)), torch.ones(5)
    weight = torch.randn(30, 8, requires_grad=True)
    total, _ = projected_cross_entropy(hidden, Projection(weight, None, 1.0, None), targets, factors)
    rounded, _ = projected_cross_entropy(hidden, Projection(weight.bfloat16(), None, 1.0, None), targets, factors)
    assert torch.equal(total, rounded)
    total.backward()
    exact = torch.nn.functional.cross_entropy(hidden.float() @ weight.t(), targets, reduction="sum")
    (true,) = torch.autograd.grad(exact, weight)
    assert weight.grad.dtype == torch.float32
    assert (weight.grad - true).norm() < 0.02 * true.norm()
