"""Every setting of an adapter is PEFT's: same files, same logits, same gradients, same merged weights."""

from __future__ import annotations

import json
import math

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from tiny_models import tiny_model
from tunesmith.chat.renderer import Rendered
from tunesmith.errors import ModelError, SpecError
from tunesmith.learn.step import TreeModel
from tunesmith.learn.tree import build_tree
from tunesmith.models.adapters.lora import LoraAdapter, add_lora, load_lora
from tunesmith.models.resolve import BaseSource
from tunesmith.specs.tune import LoraSpec

_IDS = torch.tensor([[5, 9, 12, 40, 41, 42, 7]])

VARIANTS = {
    "rslora": {"rank_stabilised": True},
    "dora": {"dora": True},
    "pissa": {"initialisation": "pissa"},
    "all": {"rank_stabilised": True, "dora": True, "initialisation": "pissa"},
}
#: Untied with biases of none, tied with biases, transposed weights, norms and scaled embeddings of their own.
FAMILIES = ["llama", "qwen2", "gpt2", "gemma3"]
WHOLE = {
    "embeddings": ("llama", ("embed_tokens",)),
    "norm": ("llama", ("norm", "model.layers.0.input_layernorm")),
    "head": ("llama", ("lm_head",)),
    "tied embeddings": ("qwen2", ("embed_tokens",)),
    "tied head": ("qwen2", ("lm_head",)),
    "both tied": ("smollm2", ("embed_tokens", "lm_head")),
    "scaled embeddings": ("gemma3", ("embed_tokens", "norm")),
    "layer": ("qwen2", ("down_proj",)),
    "gpt2": ("gpt2", ("wte", "ln_f", "lm_head")),
}


def trained(model, **settings) -> LoraAdapter:
    """An adapter as training would leave it: everything has moved."""
    torch.manual_seed(3)
    adapter = add_lora(model, LoraSpec(rank=3, alpha=5, **settings))
    with torch.no_grad():
        for group in adapter.parameter_groups():
            for parameter in group.parameters:
                parameter += torch.randn_like(parameter) * 0.1
    return adapter


def saved(adapter: LoraAdapter, folder):
    folder.mkdir(exist_ok=True)
    adapter.save(folder, BaseSource("base", folder, "folder", "0" * 64, "base"))
    return folder


def by_peft(family, folder):
    return PeftModel.from_pretrained(tiny_model(family), folder, is_trainable=True).eval()


def assert_read_and_merged_alike(family, adapter, folder):
    """PEFT's logits, ours when loaded again, ours when merged, PEFT's when merged: all on a fresh base."""
    ours = adapter.model
    theirs = by_peft(family, saved(adapter, folder))
    again = tiny_model(family)
    loaded = load_lora(again, folder)
    close = {"rtol": 1e-5, "atol": 1e-5}
    with torch.no_grad():
        tuned = ours(_IDS).logits
        assert (tuned - tiny_model(family)(_IDS).logits).abs().max() > 0.01
        torch.testing.assert_close(theirs(_IDS).logits, tuned, **close)
        torch.testing.assert_close(again(_IDS).logits, tuned, **close)
        adapter.merge()
        loaded.merge()
        torch.testing.assert_close(ours(_IDS).logits, tuned, **close)
        # What is served (loaded from files) is what was measured (merged after training).
        torch.testing.assert_close(again.state_dict(), ours.state_dict(), rtol=1e-7, atol=1e-7)
        merged = theirs.merge_and_unload()
        torch.testing.assert_close(dict(ours.state_dict()), dict(merged.state_dict()), rtol=1e-5, atol=1e-6)
    assert (
        saved(adapter, folder.parent / "after").joinpath("adapter_model.safetensors").read_bytes()
        == (folder / "adapter_model.safetensors").read_bytes()
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_peft_reads_every_variant_and_computes_the_same(family, variant, tmp_path):
    adapter = trained(tiny_model(family), **VARIANTS[variant])
    assert_read_and_merged_alike(family, adapter, tmp_path / "adapter")


@pytest.mark.parametrize("case", WHOLE)
def test_peft_reads_modules_that_were_trained_whole(case, tmp_path):
    family, whole = WHOLE[case]
    adapter = trained(tiny_model(family), modules_to_save=whole)
    assert_read_and_merged_alike(family, adapter, tmp_path / "adapter")
    tied = adapter.model.get_input_embeddings().weight is adapter.model.get_output_embeddings().weight
    assert adapter.model.config.tie_word_embeddings == tied


def gradients(model) -> None:
    loss = model(_IDS, labels=_IDS).loss
    loss.backward()


def assert_same_gradients(adapter: LoraAdapter, theirs, rank: int) -> None:
    true = {name.replace(".default", ""): p.grad for name, p in theirs.named_parameters() if p.requires_grad}
    true = {name.removesuffix(".weight") if "magnitude" in name else name: grad for name, grad in true.items()}
    true = {name.replace("modules_to_save.", ""): grad for name, grad in true.items()}
    names = [name for name in adapter.tensors() if ".initial_" not in name]
    assert sorted(true) == names
    (group,) = adapter.parameter_groups()
    for name, parameter in zip(names, group.parameters, strict=True):
        # PiSSA's files are twice as wide: the trained matrices stand first.
        expected = true[name][:rank] if "lora_A" in name else true[name]
        expected = expected[:, :rank] if "lora_B" in name else expected
        assert (parameter.grad - expected).norm() < 1e-5 * expected.norm() + 1e-9, name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_of_every_variant_are_those_of_peft(family, variant, tmp_path):
    adapter = trained(tiny_model(family), **VARIANTS[variant])
    theirs = by_peft(family, saved(adapter, tmp_path / "adapter"))
    gradients(adapter.model)
    gradients(theirs)
    assert_same_gradients(adapter, theirs, rank=3)


@pytest.mark.parametrize("case", WHOLE)
def test_gradients_of_whole_modules_are_those_of_peft(case, tmp_path):
    """Through our own trees and loss, so that the output layer's gradient is that of its chunks."""
    family, whole = WHOLE[case]
    adapter = trained(tiny_model(family), modules_to_save=whole)
    theirs = by_peft(family, saved(adapter, tmp_path / "adapter"))
    theirs(_IDS, labels=_IDS, num_items_in_batch=1).loss.backward()
    ids = tuple(_IDS[0].tolist())
    TreeModel.of(adapter.model).loss(build_tree([Rendered(ids, (False,) + (True,) * (len(ids) - 1))]))[0].backward()
    assert_same_gradients(adapter, theirs, rank=3)


def test_what_peft_trained_with_settings_of_its_own_is_read(tmp_path):
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "up_proj", "down_proj"], use_rslora=True, use_dora=True,
        rank_pattern={"up_proj": 2, "layers.1.self_attn.q_proj": 3}, alpha_pattern={"up_proj": 5},
        layers_to_transform=[1], exclude_modules=["down_proj"], modules_to_save=["embed_tokens"],
    )  # fmt: skip
    theirs = get_peft_model(tiny_model("llama"), config)
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    theirs.save_pretrained(tmp_path)
    ours = tiny_model("llama")
    adapter = load_lora(ours, tmp_path)
    ranks = {name.removeprefix("model.layers."): layer.spec.rank for name, layer in adapter.layers.items()}
    assert ranks == {"1.self_attn.q_proj": 3, "1.mlp.up_proj": 2}
    with torch.no_grad():
        torch.testing.assert_close(ours(_IDS).logits, theirs(_IDS).logits, rtol=1e-5, atol=1e-5)
        again = by_peft("llama", saved(adapter, tmp_path / "again"))
        torch.testing.assert_close(again(_IDS).logits, theirs(_IDS).logits, rtol=1e-5, atol=1e-5)


def test_b_learns_faster_by_its_ratio():
    adapter = add_lora(tiny_model("llama"), LoraSpec(rank=2, b_rate_ratio=16, dora=True, modules_to_save=("norm",)))
    slow, fast = adapter.parameter_groups()
    assert (slow.rate_factor, fast.rate_factor) == (1.0, 16.0)
    assert {id(p) for p in fast.parameters} == {id(layer.lora_b) for layer in adapter.layers.values()}
    others = [
        p for p in adapter.model.parameters() if p.requires_grad and id(p) not in {id(q) for q in fast.parameters}
    ]
    assert {id(p) for p in slow.parameters} == {id(p) for p in others}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_checkpoint_brings_everything_back_bit_for_bit(variant):
    """Also where the fresh adapter began elsewhere: what PiSSA began as is kept, not drawn again."""
    settings = {**VARIANTS[variant], "modules_to_save": ("embed_tokens",)}
    adapter = trained(tiny_model("qwen2"), **settings)
    kept = {name: tensor.clone() for name, tensor in adapter.tensors().items()}
    torch.manual_seed(99)
    other = add_lora(tiny_model("qwen2"), adapter.spec)
    other.load_tensors(kept, where="here")
    with torch.no_grad():
        assert torch.equal(other.model(_IDS).logits, adapter.model(_IDS).logits)
        adapter.merge()
        other.merge()
    for name, tensor in adapter.model.state_dict().items():
        assert torch.equal(tensor, other.model.state_dict()[name])


@pytest.mark.parametrize(
    "settings", [*VARIANTS.values(), {"modules_to_save": ("embed_tokens", "norm", "lm_head")}], ids=str
)
def test_bases_in_bfloat16_train_and_merge(settings):
    """What is trained is float32, what is computed bfloat16, and merging rounds no more than that."""
    model = tiny_model("llama").bfloat16()
    adapter = trained(model, **settings)
    assert all(p.dtype == torch.float32 for p in adapter.parameter_groups()[0].parameters)
    before = model(_IDS).logits
    assert before.dtype == torch.bfloat16
    TreeModel.of(model).loss(build_tree([Rendered((5, 6, 7), (False, True, True))]))[0].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in adapter.parameter_groups()[0].parameters)
    model.set_attn_implementation("sdpa")
    adapter.merge()
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    after = model(_IDS).logits.float()
    assert (after - before.float()).norm() < 0.05 * before.float().norm()


@pytest.mark.parametrize(
    ("wanted", "code"),
    [(("nose",), "unknown_module"), (("self_attn",), "unknown_module"), (("act_fn",), "unknown_module")],
)
def test_modules_that_cannot_be_trained_whole_are_refused(wanted, code):
    with pytest.raises(SpecError, match=repr(wanted[0])) as refused:
        add_lora(tiny_model("llama"), LoraSpec(modules_to_save=wanted))
    assert refused.value.code == code
    assert "embed_tokens" in refused.value.fix
    with pytest.raises(SpecError, match="nothing is left"):
        add_lora(tiny_model("llama"), LoraSpec(target_modules=("q_proj",), modules_to_save=("q_proj",)))


@pytest.mark.parametrize(
    "change",
    [
        {"init_lora_weights": "pissa_niter_4"}, {"trainable_token_indices": [3]}, {"modules_to_save": ["nose"]},
        {"rank_pattern": {"(": 2}}, {"use_dora": True}, {"exclude_modules": ".*"}, {"lora_bias": True},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_files_that_ask_for_something_else_are_refused(change, tmp_path):
    folder = saved(trained(tiny_model("llama")), tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert math.isclose(config["lora_alpha"], 5)
    (folder / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelError) as refused:
        load_lora(tiny_model("llama"), folder)
    assert refused.value.code in {"broken_adapter", "adapter_mismatch"}
