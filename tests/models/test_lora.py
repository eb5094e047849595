"""Our adapters are PEFT's: same files, same logits, same gradients, same merged weights."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from tiny_models import FAMILIES, tiny_model
from tunesmith.chat.renderer import ChatRenderer, Rendered
from tunesmith.data.examples import Conversation, Message
from tunesmith.errors import ModelError, SpecError
from tunesmith.learn.step import TreeModel
from tunesmith.learn.tree import build_tree
from tunesmith.models.adapters.lora import LoraAdapter, add_lora, load_lora
from tunesmith.models.load import load_base
from tunesmith.models.resolve import resolve_base
from tunesmith.models.weights import save_tensors
from tunesmith.specs.tune import LoraSpec

_IDS = torch.tensor([[5, 9, 12, 40, 41, 42, 7]])
#: The linear layers that write to the residual stream, where they aren't called as Llama calls them.
_OUTPUTS = {"gpt2": ("c_proj",), "mixtral": ("o_proj",), "qwen3_moe": ("o_proj",)}


def trained(model, spec: LoraSpec) -> LoraAdapter:
    """An adapter that is no longer the identity."""
    torch.manual_seed(3)
    adapter = add_lora(model, spec)
    for parameter in adapter.parameter_groups()[0].parameters:
        torch.nn.init.normal_(parameter, std=0.1)
    return adapter


def saved(adapter: LoraAdapter, folder):
    folder.mkdir(exist_ok=True)
    save_tensors(folder / "adapter_model.safetensors", adapter.tensors())
    (folder / "adapter_config.json").write_text(json.dumps(adapter.peft_config("base")))
    return folder


def relative_error(found: torch.Tensor, true: torch.Tensor) -> float:
    return float((found - true).norm() / true.norm())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("adapts_all", [True, False])
def test_peft_reads_an_adapter_and_computes_the_same(family, adapts_all, tmp_path):
    targets = "all-linear" if adapts_all else _OUTPUTS.get(family, ("o_proj", "down_proj"))
    spec = LoraSpec(rank=4, alpha=12, dropout=0.0, target_modules=targets)
    ours = tiny_model(family)
    adapter = trained(ours, spec)
    theirs = PeftModel.from_pretrained(tiny_model(family), saved(adapter, tmp_path / "adapter"))
    with torch.no_grad():
        plain, tuned = tiny_model(family)(_IDS).logits, ours(_IDS).logits
        torch.testing.assert_close(tuned, theirs(_IDS).logits, rtol=1e-4, atol=1e-5)
        assert (tuned - plain).abs().max() > 0.01
        again = tiny_model(family)
        load_lora(again, tmp_path / "adapter")
        torch.testing.assert_close(again(_IDS).logits, tuned, rtol=0, atol=0)
        adapter.merge()
        torch.testing.assert_close(ours(_IDS).logits, tuned, rtol=1e-4, atol=1e-5)
    merged = theirs.merge_and_unload().state_dict()
    assert ours.state_dict().keys() == merged.keys()
    torch.testing.assert_close(dict(ours.state_dict()), dict(merged), rtol=1e-5, atol=1e-6)


def test_an_adapter_that_peft_trained_is_read(tmp_path):
    theirs = get_peft_model(tiny_model("qwen2"), LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"]))
    for name, parameter in theirs.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    theirs.save_pretrained(tmp_path)
    ours = tiny_model("qwen2")
    load_lora(ours, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(ours(_IDS).logits, theirs(_IDS).logits, rtol=1e-4, atol=1e-5)


def peft_gradients(theirs, rows: list[Rendered]) -> dict[str, torch.Tensor]:
    """The gradients of the rows' summed loss by transformers and PEFT, by parameter."""
    for name, parameter in theirs.named_parameters():
        parameter.requires_grad_("lora_" in name)
    for row in rows:
        ids = torch.tensor([row.token_ids])
        labels = torch.where(torch.tensor([row.learnt]), ids, -100)
        theirs(input_ids=ids, labels=labels, num_items_in_batch=1).loss.backward()
    return {name.replace(".default", ""): p.grad for name, p in theirs.named_parameters() if p.requires_grad}


def assert_same_gradients(ours, adapter: LoraAdapter, theirs, rows: list[Rendered]) -> None:
    TreeModel.of(ours).loss(build_tree(rows))[0].backward()
    names = sorted(adapter.tensors())
    true = peft_gradients(theirs, rows)
    assert sorted(true) == names
    for name, parameter in zip(names, adapter.parameter_groups()[0].parameters, strict=True):
        assert relative_error(parameter.grad, true[name]) < 1e-4, name


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_one_step_are_those_of_peft(family, tmp_path):
    spec = LoraSpec(rank=4, alpha=12, dropout=0.0)
    ours = tiny_model(family)
    adapter = trained(ours, spec)
    theirs = PeftModel.from_pretrained(tiny_model(family), saved(adapter, tmp_path / "adapter"))
    begin = tuple(range(10, 30))
    rows = [Rendered((*begin, *end), (False,) * 20 + (True,) * len(end)) for end in [(3, 4, 5), (3, 9), (7,) * 6]]
    assert_same_gradients(ours, adapter, theirs, rows)


def test_gradients_on_the_embedded_base_are_those_of_peft(embedded_home, tmp_path):
    """The embedded base, real text: float32, relative error below 1e-4 for each of the 420 matrices."""
    source = resolve_base("smollm2-135m", embedded_home)
    loaded = load_base(source, "float32", "cpu")
    renderer = ChatRenderer(loaded.tokenizer)
    texts = [("A table for 4 at 7pm", '{"people": "4", "time": "7pm"}'), ("Tomorrow, please", '{"date": "tomorrow"}')]
    rows = [
        sequence
        for asked, answer in texts
        for sequence in renderer.for_training(Conversation((Message("user", asked), Message("assistant", answer))))
    ]
    adapter = add_lora(loaded.model, LoraSpec(rank=4, alpha=8, dropout=0.0))
    torch.manual_seed(3)
    for parameter in adapter.parameter_groups()[0].parameters:
        torch.nn.init.normal_(parameter, std=0.02)
    base = load_base(source, "float32", "cpu", attention="eager").model
    theirs = PeftModel.from_pretrained(base, saved(adapter, tmp_path / "adapter"))
    assert_same_gradients(loaded.model, adapter, theirs, rows)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_dropout_changes_training_alone(family):
    model = tiny_model(family)
    trained(model, LoraSpec(rank=4, dropout=0.5))
    with torch.no_grad():
        calm, again = model(_IDS).logits, model(_IDS).logits
        model.train()
        assert not torch.equal(model(_IDS).logits, calm)
    torch.testing.assert_close(calm, again, rtol=0, atol=0)


def test_a_fresh_adapter_changes_nothing():
    model = tiny_model("gemma3")
    add_lora(model, LoraSpec(rank=4))
    with torch.no_grad():
        torch.testing.assert_close(model(_IDS).logits, tiny_model("gemma3")(_IDS).logits, rtol=0, atol=0)
    assert {name.rsplit(".", 1)[-1] for name, p in model.named_parameters() if p.requires_grad} == {"lora_a", "lora_b"}


def test_an_adapter_of_another_base_is_refused(tmp_path):
    folder = saved(trained(tiny_model("llama"), LoraSpec(rank=4)), tmp_path / "adapter")
    for other in (tiny_model("llama", num_hidden_layers=3), tiny_model("phi3")):
        with pytest.raises(ModelError) as refused:
            load_lora(other, folder)
        assert (refused.value.code, refused.value.where) == ("adapter_mismatch", str(folder))


@pytest.mark.parametrize(
    "change",
    [
        {"bias": "all"}, {"target_modules": ".*proj"}, {"peft_type": "IA3"}, {"r": "four"}, {"lora_bias": True},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_what_would_be_computed_wrongly_is_refused(change, tmp_path):
    folder = saved(trained(tiny_model("llama"), LoraSpec(rank=4)), tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelError) as refused:
        load_lora(tiny_model("llama"), folder)
    assert refused.value.code == "broken_adapter"


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_broken_files_are_refused(file, tmp_path):
    folder = saved(trained(tiny_model("llama"), LoraSpec(rank=4)), tmp_path / "adapter")
    copy = shutil.copytree(folder, tmp_path / "copy")
    (folder / file).write_bytes((folder / file).read_bytes()[:50])
    (copy / file).unlink()
    for broken in (folder, copy):
        with pytest.raises(ModelError) as refused:
            load_lora(tiny_model("llama"), broken)
        assert refused.value.code == "broken_adapter"


def test_layers_that_are_not_there_are_refused():
    with pytest.raises(SpecError, match="'nose'") as refused:
        add_lora(tiny_model("llama"), LoraSpec(target_modules=("q_proj", "nose")))
    assert "q_proj" in refused.value.fix
    with pytest.raises(ModelError, match="no linear layers"):
        add_lora(tiny_model("llama", num_hidden_layers=0), LoraSpec())
