"""An adapter that is used beside its base computes what PEFT computes with the same files."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

from tiny_models import tiny_model
from tunesmith.errors import ModelError
from tunesmith.models.adapters.frozen import weight_of
from tunesmith.models.adapters.lora import add_lora
from tunesmith.models.adapters.served import NOT_BESIDE, beside, read_served
from tunesmith.models.resolve import BaseSource
from tunesmith.models.weights import save_tensors
from tunesmith.specs.tune import LoraSpec

IDS = torch.tensor([[5, 9, 12, 40, 41, 42, 7]])
CPU = torch.device("cpu")
VARIANTS = {
    "plain": {},
    "rslora": {"rank_stabilised": True},
    "dora": {"dora": True},
    "pissa": {"initialisation": "pissa"},
    "all": {"rank_stabilised": True, "dora": True, "initialisation": "pissa"},
}


def written(family, folder, **settings):
    """An adapter as training would leave it, on the disk."""
    torch.manual_seed(3)
    adapter = add_lora(tiny_model(family), LoraSpec(rank=3, alpha=5, **settings))
    with torch.no_grad():
        for parameter in adapter.parameter_groups()[0].parameters:
            parameter += torch.randn_like(parameter) * 0.1
    folder.mkdir(exist_ok=True)
    adapter.save(folder, BaseSource("base", folder, "folder", "0" * 64, "base"))
    return folder


def tuned_logits(model, adapter):
    with torch.no_grad(), beside(model, adapter):
        return model(IDS).logits


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "phi3"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_it_computes_what_peft_computes(family, variant, tmp_path):
    folder = written(family, tmp_path / "adapter", **VARIANTS[variant])
    theirs = PeftModel.from_pretrained(tiny_model(family), folder).eval()
    base = tiny_model(family)
    served = read_served(folder, base, torch.float32, CPU)
    with torch.no_grad():
        expected, untuned = theirs(IDS).logits, base(IDS).logits
    assert (expected - untuned).abs().max() > 0.01
    torch.testing.assert_close(tuned_logits(base, served), expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(base(IDS).logits, untuned)
    assert served.bytes == sum(layer.bytes for layer in served.layers.values()) > 0


def test_ranks_and_scales_of_single_layers_are_kept(tmp_path):
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "up_proj", "down_proj"], use_rslora=True, use_dora=True,
        rank_pattern={"up_proj": 2, "layers.1.self_attn.q_proj": 3}, alpha_pattern={"up_proj": 5},
    )  # fmt: skip
    theirs = get_peft_model(tiny_model("llama"), config).eval()
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    theirs.save_pretrained(tmp_path)
    base = tiny_model("llama")
    served = read_served(tmp_path, base, torch.float32, CPU)
    assert {layer.a.shape[0] for layer in served.layers.values()} == {2, 3, 4}
    with torch.no_grad():
        torch.testing.assert_close(tuned_logits(base, served), theirs(IDS).logits, rtol=1e-5, atol=1e-5)


def test_everything_is_rounded_once_to_the_format_of_the_base(tmp_path):
    folder = written("llama", tmp_path / "adapter", dora=True)
    exact = read_served(folder, tiny_model("llama"), torch.float32, CPU)
    rounded = read_served(folder, tiny_model("llama"), torch.bfloat16, CPU)
    for name, layer in exact.layers.items():
        for part in ("a", "b", "factors"):
            assert torch.equal(getattr(rounded.layers[name], part), getattr(layer, part).bfloat16())


def test_a_base_that_has_given_its_weights_away_is_asked_for_them(tmp_path):
    folder = written("gpt2", tmp_path / "adapter", dora=True)
    whole, hollow = tiny_model("gpt2"), tiny_model("gpt2")
    expected = read_served(folder, whole, torch.float32, CPU)
    for name in expected.layers:
        hollow.get_submodule(name).weight = nn.Parameter(torch.empty(0))
    found = read_served(
        folder, hollow, torch.float32, CPU, base_weight=lambda name: weight_of(whole.get_submodule(name))
    )
    assert all(torch.equal(found.layers[name].factors, layer.factors) for name, layer in expected.layers.items())


def test_what_changes_whole_modules_is_told_to_be_folded_in(tmp_path):
    folder = written("llama", tmp_path / "adapter", modules_to_save=("norm",))
    with pytest.raises(ModelError) as refused:
        read_served(folder, tiny_model("llama"), torch.float32, CPU)
    assert refused.value.code == NOT_BESIDE


def spoil(folder, change):
    file = folder / "adapter_model.safetensors"
    if change == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif change == "gone":
        file.unlink()
    elif change == "config":
        (folder / "adapter_config.json").write_text("{")
    elif change == "foreign":
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_bias": True}))
    else:
        prefix = "base_model.model.model.layers.0.self_attn.q_proj.lora_A"
        tensor = torch.full((3, 32), float("nan")) if change == "nan" else torch.zeros(4, 32)
        tensors = load_file(file)
        save_tensors(file, tensors | {f"{prefix}{'.more' if change == 'extra' else ''}.weight": tensor})


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("cut", "broken_adapter"), ("gone", "broken_adapter"), ("config", "broken_adapter"),
        ("foreign", "broken_adapter"), ("nan", "broken_adapter"), ("shape", "adapter_mismatch"),
        ("extra", "adapter_mismatch"),
    ],
)  # fmt: skip
def test_broken_files_are_refused(change, code, tmp_path):
    folder = written("llama", tmp_path / "adapter")
    spoil(folder, change)
    with pytest.raises(ModelError) as refused:
        read_served(folder, tiny_model("llama"), torch.float32, CPU)
    assert refused.value.code == code and refused.value.where == str(folder)


def test_an_adapter_of_another_base_is_refused(tmp_path):
    folder = written("llama", tmp_path / "adapter")
    with pytest.raises(ModelError) as refused:
        read_served(folder, tiny_model("llama", hidden_size=64), torch.float32, CPU)
    assert refused.value.code == "adapter_mismatch"
