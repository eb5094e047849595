"""A tuned model answers as its base with the adapter does, with the template of its training, or not at all."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from serving_models import prompt, random_adapter, register_tuned
from tunesmith.data.examples import Message
from tunesmith.errors import ModelError, RequestError
from tunesmith.generate.request import ScoreRequest
from tunesmith.models.load import load_base
from tunesmith.models.resolve import resolve_base
from tunesmith.serve.answering import open_model
from tunesmith.specs.generation import SamplingSpec

SHORT = SamplingSpec(max_completion_tokens=12)


@pytest.mark.parametrize("family", ["smollm2", "qwen3", "gemma3"])
def test_a_tuned_model_computes_what_its_base_with_the_adapter_does(family, tiny_folder, home):
    version = register_tuned(tiny_folder(family), home, seed=3)
    opened = open_model(version.id, home, dtype="float32")
    assert opened.name == version.name and opened.version == version
    request = opened.request(prompt("A table for two?"), SHORT)
    tokens = (40, 41, 42, 300, 7)
    found = opened.engine.score([ScoreRequest(request.prompt_ids, tokens, name) for name in (None, request.adapter)])
    plain = load_base(resolve_base(str(tiny_folder(family)), home), "float32")
    ids = torch.tensor([[*request.prompt_ids, *tokens]])
    for score, is_tuned in zip(found, (False, True), strict=True):
        if is_tuned:
            random_adapter(plain.model, 3)
        with torch.no_grad():
            logprobs = plain.model(ids).logits[0].log_softmax(-1)
        expected = [float(logprobs[i - len(tokens) - 1, token]) for i, token in enumerate(tokens)]
        assert score.logprobs == pytest.approx(expected, abs=1e-4)
    assert found[0].total != pytest.approx(found[1].total, abs=0.1)


def test_fingerprints_tell_weights_apart(tiny_folder, home):
    folder = tiny_folder("smollm2")
    one, two = (register_tuned(folder, home, seed=seed) for seed in (0, 1))
    names = [str(folder), one.name, two.name]
    prints = [open_model(name, home, dtype="float32").fingerprint for name in names]
    assert len(set(prints)) == 3
    assert prints == [open_model(name, home, dtype="float32").fingerprint for name in names]
    assert open_model(str(folder), home, dtype="bfloat16").fingerprint != prints[0]


def test_another_template_is_refused(tiny_folder, home):
    version = register_tuned(tiny_folder("smollm2"), home, template_sha256="7" * 64)
    with pytest.raises(ModelError) as refused:
        open_model(version.name, home)
    assert refused.value.code == "template_mismatch"


def test_a_changed_template_file_is_refused(tiny_folder, home):
    version = register_tuned(tiny_folder("smollm2"), home)
    file = version.folder / "chat_template.jinja"
    file.write_text(file.read_text() + " ")
    with pytest.raises(ModelError) as refused:
        open_model(version.name, home)
    assert refused.value.code == "digest_mismatch"


def test_prompts_that_are_too_long_are_refused(tiny_folder, home):
    opened = open_model(str(tiny_folder("smollm2")), home)
    for text in ("A table for two? " * 400, "x" * 20_000_000):
        with pytest.raises(RequestError) as refused:
            opened.request(prompt(text), SHORT)
        assert refused.value.code == "context_length_exceeded" and refused.value.param == "messages"


@pytest.mark.parametrize("what", ["tools", "messages"])
def test_a_prompt_whose_text_cannot_fit_is_refused_before_it_is_cut_into_tokens(what, tiny_folder, home):
    opened = open_model(str(tiny_folder("qwen3")), home)
    hello = prompt("Hello?")
    if what == "tools":
        tool = {"type": "function", "function": {"name": "book", "description": "word " * 100_000}}
        asked = replace(hello, tools=(tool,))
    else:
        asked = replace(hello, messages=(Message("user", ""),) * 20_000)
    with pytest.raises(RequestError) as refused:
        opened.request(asked, SHORT)
    assert refused.value.code == "context_length_exceeded" and refused.value.param == "messages"
    # It would say how many tokens if they had been counted.
    assert "characters" in refused.value.message


def test_messages_that_the_template_refuses_are_the_callers_fault(tiny_folder, home):
    opened = open_model(str(tiny_folder("gemma3")), home)
    twice = prompt("Hello?")
    with pytest.raises(RequestError) as refused:
        opened.request(type(twice)(twice.messages * 2), SHORT)
    assert refused.value.code == "template_refuses" and refused.value.param == "messages"
