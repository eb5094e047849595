"""Every weight is trained: gradients are transformers' own, and what is written is a whole model."""

import json

import pytest
import torch

from tiny_models import tiny_model
from tunesmith.chat.renderer import Rendered
from tunesmith.errors import ModelError
from tunesmith.learn.step import TreeModel
from tunesmith.learn.tree import build_tree
from tunesmith.models.adapters.attach import add_adapter
from tunesmith.models.load import load_base
from tunesmith.models.resolve import resolve_base
from tunesmith.specs.tune import FullSpec

ROWS = ((5, 6, 7, 8, 9, 10, 11), (5, 6, 7, 20, 21, 22), (30, 31, 32, 33))


def sequence(ids, first_learnt=2):
    return Rendered(ids, tuple(position >= first_learnt for position in range(len(ids))))


@pytest.mark.parametrize("family", ["smollm2", "llama", "gemma3"])
def test_gradients_are_those_of_plain_transformers(family):
    """smollm2 and gemma3 tie the embeddings to the output layer; llama doesn't."""
    ours, theirs = tiny_model(family), tiny_model(family)
    adapter = add_adapter(ours, FullSpec())
    loss, _ = TreeModel.of(ours).loss(build_tree([sequence(ids) for ids in ROWS]))
    loss.backward()
    expected = 0.0
    for ids in ROWS:
        logits = theirs(torch.tensor([ids])).logits[0, 1:-1]
        expected = expected + torch.nn.functional.cross_entropy(logits, torch.tensor(ids[2:]), reduction="sum")
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    found = dict(theirs.named_parameters())
    assert adapter.tensors().keys() == found.keys()
    for name, parameter in ours.named_parameters():
        scale = found[name].grad.abs().max().item()
        torch.testing.assert_close(parameter.grad, found[name].grad, rtol=1e-5, atol=1e-5 * scale, msg=name)


@pytest.mark.parametrize("family", ["smollm2", "llama"])
def test_what_is_saved_is_a_whole_model(family, tiny_folder, home, tmp_path):
    source = resolve_base(str(tiny_folder(family)), home)
    loaded = load_base(source, "bfloat16", "cpu")
    adapter = add_adapter(loaded.model, FullSpec())
    for parameter in loaded.model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    # As Llama 3's release has them: transformers reads such settings, but refuses to write them.
    loaded.model.generation_config.temperature, loaded.model.generation_config.do_sample = 0.6, False
    folder = tmp_path / "whole"
    folder.mkdir()
    adapter.save(folder, source)
    adapter.settle()
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    again = load_base(resolve_base(str(folder), home), "bfloat16", "cpu")
    assert again.end_of_turn_ids == loaded.end_of_turn_ids
    assert again.tokenizer.encode("Hello, tea") == loaded.tokenizer.encode("Hello, tea")
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    tied = family == "smollm2"
    assert (again.model.get_output_embeddings().weight is again.model.get_input_embeddings().weight) == tied
    for name, tensor in adapter.tensors().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name


def test_weights_of_another_model_are_refused():
    adapter = add_adapter(tiny_model("llama"), FullSpec())
    tensors = {name: tensor.clone() for name, tensor in adapter.tensors().items()}
    tensors["model.norm.weight"] = torch.zeros(3)
    with pytest.raises(ModelError) as refused:
        adapter.load_tensors(tensors, where="a checkpoint")
    assert refused.value.code == "adapter_mismatch"
    assert "model.norm.weight" in refused.value.message
