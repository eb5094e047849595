"""Models held to a form: alone, in a batch with free answers, one request at a time."""

from __future__ import annotations

import json
import re
from functools import cache

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from json_schemas import schemas
from lone_models import lone_model
from tiny_models import CONTEXT_TOKENS, FAMILIES, tiny_model, tiny_tokenizer
from tunesmith.chat.renderer import ChatRenderer
from tunesmith.errors import RequestError
from tunesmith.generate.engine import Engine
from tunesmith.generate.one_by_one import OneByOne
from tunesmith.generate.request import Request
from tunesmith.models.load import LoadedModel
from tunesmith.serve.answering import open_model
from tunesmith.specs.generation import SamplingSpec

BOOKING = {
    "type": "object",
    "properties": {
        "people": {"type": "integer", "minimum": 1, "maximum": 20},
        "time": {"type": "string", "pattern": "^[0-2][0-9]:[0-5][0-9]$"},
        "seats": {"type": "array", "items": {"enum": ["inside", "outside"]}, "maxItems": 2},
        "name": {"anyOf": [{"type": "string", "maxLength": 12}, {"type": "null"}]},
    },
    "required": ["people", "time", "seats", "name"],
    "additionalProperties": False,
}


@cache
def engine(family: str) -> Engine:
    tokenizer = tiny_tokenizer(family)
    # More logits than tokens, as models have that were padded for their hardware.
    model = tiny_model(family, vocab_size=len(tokenizer) + 11)
    loaded = LoadedModel(
        model=model, tokenizer=tokenizer, source=None, dtype=torch.float32, device=torch.device("cpu"),
        context_tokens=CONTEXT_TOKENS, end_of_turn_ids=(), family=family,
    )  # fmt: skip
    return Engine(loaded, ChatRenderer(tokenizer))


def request(seed: int = 0, prompt: tuple[int, ...] = (30, 31, 32), **sampling) -> Request:
    return Request(
        prompt, SamplingSpec.parse({"temperature": 1.0, "seed": seed, "max_completion_tokens": 300, **sampling})
    )


@settings(max_examples=10)
@given(schema=schemas(), seed=st.integers(0, 2**32))
def test_answers_fit_any_schema(schema, seed):
    form = {"kind": "json_schema", "json_schema": schema}
    for done in engine("llama").generate([request(seed + i, output=form, max_completion_tokens=120) for i in range(2)]):
        assert done.finish_reason in ("stop", "length")
        if done.finish_reason == "stop":
            jsonschema.Draft202012Validator(schema).validate(json.loads(done.text))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_held_to_a_form(family):
    form = {"kind": "json_schema", "json_schema": BOOKING}
    finished = 0
    for done in engine(family).generate([request(seed, output=form) for seed in range(4)]):
        if done.finish_reason == "stop":
            finished += 1
            jsonschema.validate(json.loads(done.text), BOOKING)
    assert finished > 1


FORMS = [
    {"kind": "regex", "pattern": "[a-f]{4}"},
    {"kind": "choice", "choices": ["yes", "yes, please", "no"]},
    {"kind": "grammar", "grammar": 'start: "x" /[0-9]{2}/'},
    {"kind": "json_object"},
]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_forms_and_free_text_in_one_batch(temperature):
    """A free answer, and one of each form, are what they are alone."""
    mixed = [
        request(i, tuple(range(40 + i, 50 + 3 * i)), temperature=temperature, max_completion_tokens=20, **form)
        for i, form in enumerate([{}, *({"output": form} for form in FORMS), {}, {"top_p": 0.9}])
    ]
    together = engine("qwen3").generate(mixed)
    alone = [engine("qwen3").generate([one])[0] for one in mixed]
    assert [done.token_ids for done in together] == [done.token_ids for done in alone]
    assert re.fullmatch("[a-f]{4}", together[1].text)
    assert together[2].text in FORMS[1]["choices"]
    assert re.fullmatch("x[0-9]{2}", together[3].text)
    assert together[4].text.startswith("{")


def test_models_that_answer_one_by_one_can_be_held_to_a_form():
    """This one has fewer logits than its tokenizer has tokens."""
    tokenizer = tiny_tokenizer("qwen2")
    loaded = LoadedModel(
        model=lone_model("mamba"), tokenizer=tokenizer, source=None, dtype=torch.float32, device=torch.device("cpu"),
        context_tokens=64, end_of_turn_ids=(), family="mamba",
    )  # fmt: skip
    (done,) = OneByOne(loaded, ChatRenderer(tokenizer)).generate([request(output={"kind": "regex", "pattern": "a{9}"})])
    assert done.text == "aaaaaaaaa"


def test_penalties_and_biases_choose_within_the_form():
    yes = tiny_tokenizer("llama").encode("b", add_special_tokens=False)[0]
    form = {"kind": "regex", "pattern": "[abc]{3}"}
    (done,) = engine("llama").generate([request(output=form, temperature=0.0, logit_bias={yes: 100.0})])
    assert done.text == "bbb"


def test_ends_are_ignored_only_until_the_form_is_complete():
    form = {"kind": "choice", "choices": ["yes"]}
    (done,) = engine("llama").generate([request(output=form, ignore_eos=True)])
    assert (done.text, done.finish_reason) == ("yes", "stop")


def test_a_cut_answer_says_so():
    form = {"kind": "regex", "pattern": "[ab]{50}"}
    (done,) = engine("llama").generate([request(output=form, max_completion_tokens=5)])
    assert done.finish_reason == "length"
    assert re.fullmatch("[ab]+", done.text)


def test_a_wrong_form_is_refused_before_anything_is_computed():
    made = engine("llama")
    with pytest.raises(RequestError) as refused:
        made.add(request(output={"kind": "regex", "pattern": "(a"}))
    assert (refused.value.code, refused.value.param) == ("invalid_regex", "output")
    assert not made.has_work


def test_a_dead_end_ends_one_answer_only():
    """The bounds of the grammar engine end an answer that it can't follow; the others go on."""
    hostile = {"kind": "regex", "pattern": "((a{1,1000}){1,1000}){1,1000}"}
    never_end = dict.fromkeys(engine("llama").renderer.end_of_turn_ids, -100.0)
    made = engine("llama")
    (alone,) = made.generate([request(1, max_completion_tokens=40)])
    broken, free = (
        made.add(request(output=hostile, logit_bias=never_end)),
        made.add(request(1, max_completion_tokens=40)),
    )
    done = {}
    while made.has_work:
        done |= {delta.request_id: delta.completion for delta in made.step() if delta.completion is not None}
    assert (done[broken].finish_reason, done[broken].error.code) == ("error", "form_dead_end")
    assert set(done[broken].text) == {"a"}
    assert done[free].token_ids == alone.token_ids


@pytest.mark.slow
def test_the_embedded_base_answers_in_the_form(embedded_home):
    from tunesmith.data.examples import Conversation, Message

    opened = open_model("smollm2-135m", embedded_home)
    asked = Conversation((Message("user", "Book a table for four at half past seven, name of Maria. Answer in JSON."),))
    sampling = SamplingSpec.parse(
        {"temperature": 1.0, "seed": 0, "n": 4, "output": {"kind": "json_schema", "json_schema": BOOKING}}
    )
    for done in opened.engine.generate(opened.request(asked, sampling).expand()):
        assert done.finish_reason == "stop"
        jsonschema.validate(json.loads(done.text), BOOKING)
    sampling = SamplingSpec.parse({"output": {"kind": "choice", "choices": ["Paris", "Rome"]}})
    capital = Conversation((Message("user", "What is the capital of France?"),))
    assert opened.engine.generate([opened.request(capital, sampling)])[0].text == "Paris"
