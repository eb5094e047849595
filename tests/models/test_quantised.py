"""Weights in 4 bits: how much is lost, that products are those of the weights, that nothing plain is kept."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tiny_models import tiny_model
from tunesmith.errors import ModelError
from tunesmith.models.adapters.attach import add_adapter, base_quantisation
from tunesmith.models.adapters.lora import add_lora
from tunesmith.models.load import load_base
from tunesmith.models.quantised import BLOCK_SIZE, Nf4, Nf4Linear, quantise_linears
from tunesmith.models.resolve import resolve_base
from tunesmith.specs.tune import LoraSpec, QloraSpec

#: Half of the widest gap between two of NF4's levels, -1 and -0.6962, of a block whose largest weight is 1.
HALF_GAP = (1 - 0.6961928) / 2


def linear_of(rows, columns, size, seed):
    linear = torch.nn.Linear(columns, rows)
    generator = torch.Generator().manual_seed(seed)
    linear.weight.data = torch.randn(rows, columns, generator=generator) * size
    return linear.requires_grad_(False)


@given(
    st.integers(1, 40),
    st.sampled_from([1, 2, 31, 32, 64, 96, 100, 160]),
    st.floats(1e-4, 1e2),
    st.integers(0, 2**16),
    st.booleans(),
)
def test_no_weight_moves_further_than_half_a_gap_of_its_block(rows, columns, size, seed, double):
    linear = linear_of(rows, columns, size, seed)
    layer = Nf4Linear(linear, double_quantisation=double)
    moved = (layer.weight - linear.weight).flatten().abs().split(BLOCK_SIZE)
    largest = torch.stack([block.abs().max() for block in linear.weight.flatten().split(BLOCK_SIZE)])
    allowed = HALF_GAP * largest
    if double:
        # The factors themselves move by at most half a step of 8 bits, of the largest of them less their mean.
        allowed += 0.0075 * (largest - largest.mean()).abs().max()
    assert all(block.max() <= bound * 1.001 + 1e-12 for block, bound in zip(moved, allowed, strict=True))
    assert layer.packed.numel() == len(largest) * BLOCK_SIZE // 2


def test_a_layers_outputs_and_gradients_are_those_of_its_weights():
    layer = Nf4Linear(linear_of(24, 96, 0.1, 0), double_quantisation=True)
    x = torch.randn(2, 5, 96, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    plain = layer.plain()
    grad = torch.randn(2, 5, 24)
    layer(x).backward(grad)
    plain(y).backward(grad)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(layer(x), plain(y), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("double", [False, True])
def test_a_large_layer_is_quantised_in_parts_as_if_at_once(double):
    from bitsandbytes import functional

    linear = linear_of(1500, 3000, 0.1, 0)
    layer = Nf4Linear(linear, double_quantisation=double)
    codes, state = functional.quantize_4bit(
        torch.nn.functional.pad(linear.weight.flatten(), (0, 32)).view(-1, BLOCK_SIZE),
        blocksize=BLOCK_SIZE,
        compress_statistics=double,
        quant_type="nf4",
    )
    assert torch.equal(layer.packed, codes)
    assert torch.equal(layer.weight, functional.dequantize_4bit(codes, state).flatten()[:-32].view(1500, 3000))


def test_layers_follow_to_another_number_format():
    layer = Nf4Linear(linear_of(8, 64, 0.1, 0), double_quantisation=True)
    before = layer.weight
    layer.to(torch.bfloat16)
    assert layer.weight.dtype == torch.bfloat16
    assert torch.equal(layer.weight, before.bfloat16())


def twins(spec, seed=0):
    """One model with a quantised base, one with the same base brought back to plain weights; the same adapter."""
    quantised, plain = tiny_model("qwen2"), tiny_model("qwen2")
    names = quantise_linears(quantised, double_quantisation=True)
    for name in names:
        plain.get_submodule(name).weight.data.copy_(quantised.get_submodule(name).weight)
    adapters = []
    for model in (quantised, plain):
        adapter = (add_adapter if model is quantised else add_lora)(model, spec)
        generator = torch.Generator().manual_seed(seed)
        for parameter in adapter.parameter_groups()[0].parameters:
            parameter.data.normal_(0.0, 0.1, generator=generator)
        adapters.append(adapter)
    return quantised, plain, adapters


def test_an_adapter_on_four_bits_equals_lora_on_the_same_weights_kept_plain():
    quantised, plain, adapters = twins(QloraSpec(rank=4))
    ids = torch.randint(10, 300, (2, 12), generator=torch.Generator().manual_seed(1))
    for model in (quantised, plain):
        model(input_ids=ids, labels=ids).loss.backward()
    with torch.no_grad():
        torch.testing.assert_close(quantised(ids).logits, plain(ids).logits, rtol=1e-5, atol=1e-5)
    for one, other in zip(*(a.parameter_groups()[0].parameters for a in adapters), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-6)
    assert all(p.grad is None for n, p in quantised.named_parameters() if "lora" not in n)


def test_no_plain_weight_is_kept_for_the_backward_pass():
    layer = Nf4Linear(linear_of(32, 64, 0.1, 0), double_quantisation=True)
    model = torch.nn.Sequential(layer, layer)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        model[0](torch.randn(3, 64, requires_grad=True)).sum()
        quantised = tiny_model("llama")
        add_adapter(quantised, QloraSpec(rank=4, target_modules=("q_proj",)))
        quantised(input_ids=torch.tensor([[5, 6, 7]])).logits.sum()
    weights = {(m.out_features, m.in_features) for m in quantised.modules() if isinstance(m, Nf4Linear)}
    assert (32, 64) in weights
    assert not {tuple(shape) for shape in kept} & (weights | {shape[::-1] for shape in weights})


def test_settling_keeps_four_bits_and_merging_gives_a_plain_model_with_the_same_logits():
    quantised, _, (adapter, _) = twins(QloraSpec(rank=4))
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        before = quantised(ids).logits
        adapter.settle()
        assert torch.equal(quantised(ids).logits, before)
        adapter.merge()
        assert not any(isinstance(module, Nf4Linear) for module in quantised.modules())
        torch.testing.assert_close(quantised(ids).logits, before, rtol=1e-4, atol=1e-4)


def test_the_same_base_is_quantised_the_same_way_again_whatever_it_is_served_in(tiny_folder, home):
    source = resolve_base(str(tiny_folder("llama")), home)
    trained = load_base(source, "bfloat16", "cpu", quantisation=Nf4(double_quantisation=True))
    assert trained.quantisation == Nf4(double_quantisation=True, dtype="bfloat16")
    again = Nf4.from_json(trained.quantisation.to_json(), "here")
    for dtype, expected in (("auto", torch.bfloat16), ("float32", torch.float32)):
        served = load_base(source, dtype, "cpu", quantisation=again)
        assert served.dtype == served.model.dtype == expected
        for name, module in trained.model.named_modules():
            if isinstance(module, Nf4Linear):
                assert torch.equal(served.model.get_submodule(name).packed, module.packed)
    assert type(served.model.get_output_embeddings()) is torch.nn.Linear
    with pytest.raises(ModelError) as refused:
        Nf4.from_json({**trained.quantisation.to_json(), "block_size": 128}, "here")
    assert refused.value.code == "unknown_quantisation"


def test_peft_reads_an_adapter_that_was_trained_on_four_bits(tmp_path):
    from peft import PeftModel

    _, plain, (adapter, _) = twins(QloraSpec(rank=4))
    from tunesmith.models.weights import save_tensors
    from tunesmith.record.atomic import write_json

    save_tensors(tmp_path / "adapter_model.safetensors", adapter.tensors())
    write_json(tmp_path / "adapter_config.json", adapter.peft_config("base"))
    base = tiny_model("qwen2")
    for name in quantise_linears(tiny_model("qwen2"), double_quantisation=True):
        base.get_submodule(name).weight.data.copy_(adapter.model.get_submodule(name).linear.weight)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(base, tmp_path)(input_ids=ids).logits
        torch.testing.assert_close(theirs, plain(ids).logits, rtol=1e-5, atol=1e-5)


def test_only_qlora_asks_for_four_bits():
    assert base_quantisation(QloraSpec(double_quantisation=False)) == Nf4(double_quantisation=False)
    assert base_quantisation(LoraSpec()) is None


def test_without_bitsandbytes_the_error_says_how_to_get_it():
    code = (
        "import sys; sys.modules['bitsandbytes'] = None\n"
        "import torch; from tunesmith.models.quantised import Nf4Linear\n"
        "from tunesmith.errors import ModelError\n"
        "try: Nf4Linear(torch.nn.Linear(4, 4), double_quantisation=True)\n"
        "except ModelError as error: print(error.code, error.fix)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("missing_package")
    assert "tunesmith[quantised]" in done.stdout
