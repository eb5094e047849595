"""Whatever is sent is either understood or refused with a reason; nothing else ever happens."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.errors import RequestError
from tunesmith.rest.errors import wire_error
from tunesmith.rest.reading import read_chat_request
from tunesmith.rest.translate import conversation_of, sampling_of
from tunesmith.rest.wire import IGNORED, UNSUPPORTED, ChatRequest

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
ANY = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
CALLS = st.lists(
    st.fixed_dictionaries(
        {"id": st.sampled_from(["a", "b"]) | ANY, "type": st.just("function") | ANY},
        optional={"function": ANY | st.just({"name": "f", "arguments": "{}"})},
    ),
    max_size=2,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool", "function"]) | ANY},
        optional={
            "content": st.text(max_size=8) | st.just([{"type": "text", "text": "x"}]) | ANY,
            "tool_calls": CALLS | ANY,
            "tool_call_id": st.sampled_from(["a", "b"]) | ANY,
            "name": ANY,
            "refusal": ANY,
        },
    ),
    max_size=4,
)
BODIES = st.fixed_dictionaries(
    {"model": st.just("m") | ANY, "messages": MESSAGES | ANY},
    optional={
        name: ANY for name in (ChatRequest.model_fields.keys() | IGNORED | UNSUPPORTED.keys()) - {"model", "messages"}
    },
)


def understand(body):
    request = read_chat_request(body)
    return conversation_of(request), sampling_of(request, 1024)


@settings(max_examples=400, deadline=None)
@given(body=BODIES)
def test_any_object_is_understood_or_refused(body):
    try:
        conversation, sampling = understand(json.dumps(body).encode())
    except RequestError as error:
        told = wire_error(error)
        assert told.status == 400 and told.message and told.code
        assert all(isinstance(value, str | None) for value in told.body["error"].values())
        assert len(told.message) < 2000
    else:
        assert conversation.messages and 1 <= sampling.n <= 128


@settings(max_examples=200, deadline=None)
@given(body=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_refused(body):
    try:
        understand(body)
    except RequestError as error:
        assert wire_error(error).status == 400
    else:
        raise AssertionError("no bytes this short are a request")


@given(
    temperature=st.floats(0, 2),
    top_p=st.floats(0, 1),
    n=st.integers(1, 128),
    limit=st.integers(1, 2**40),
    stop=st.none() | st.text(min_size=1) | st.lists(st.text(min_size=1), max_size=4),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
)
def test_what_is_asked_is_what_the_engine_is_told(temperature, top_p, n, limit, stop, seed):
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "temperature": temperature, "top_p": top_p,
            "n": n, "max_completion_tokens": limit, "max_tokens": 3, "stop": stop, "seed": seed}  # fmt: skip
    _, sampling = understand(json.dumps(body).encode())
    assert (sampling.temperature, sampling.n, sampling.seed) == (temperature, n, seed)
    assert abs(sampling.top_p - top_p) <= 1e-6
    assert sampling.max_completion_tokens == min(limit, 1_000_000)
    assert sampling.stop == ((stop,) if isinstance(stop, str) else tuple(stop or ()))


@given(
    presence=st.floats(-2, 2),
    frequency=st.integers(-2, 2),
    repetition=st.floats(0.1, 10),
    top_k=st.integers(-1, 2**70),
    min_p=st.floats(0, 1),
    ignore_eos=st.booleans(),
    bias=st.dictionaries(st.integers(0, 2**31), st.floats(-100, 100) | st.integers(-100, 100), max_size=5),
)
def test_what_changes_the_odds_is_passed_on(presence, frequency, repetition, top_k, min_p, ignore_eos, bias):
    asked = {"presence_penalty": presence, "frequency_penalty": frequency, "repetition_penalty": repetition,
             "min_p": min_p, "ignore_eos": ignore_eos}  # fmt: skip
    written = {**asked, "top_k": top_k, "logit_bias": {str(token): value for token, value in bias.items()}}
    _, sampling = understand(
        json.dumps({"model": "m", "messages": [{"role": "user", "content": "Hi"}]} | written).encode()
    )
    assert {name: getattr(sampling, name) for name in asked} == asked
    assert sampling.top_k == max(0, top_k) and sampling.logit_bias == bias


@pytest.mark.parametrize(
    ("field", "value", "param", "code", "words"),
    [
        ("frequency_penalty", 2.5, "frequency_penalty", "decimal_above_max_value", "<= 2"),
        ("presence_penalty", -3, "presence_penalty", "decimal_below_min_value", ">= -2"),
        ("presence_penalty", True, "presence_penalty", "invalid_type", "a decimal"),
        ("repetition_penalty", 5e-324, "repetition_penalty", "decimal_below_min_value", ">= 0.01"),
        ("top_k", 1.5, "top_k", "invalid_type", "an integer"),
        ("min_p", 2, "min_p", "decimal_above_max_value", "<= 1"),
        ("ignore_eos", 1, "ignore_eos", "invalid_type", "a boolean"),
        ("logit_bias", [1], "logit_bias", "invalid_type", "an object"),
        ("logit_bias", {"5": 101}, "logit_bias.5", "decimal_above_max_value", "<= 100"),
        ("logit_bias", {"5": "1"}, "logit_bias.5", "invalid_type", "a decimal"),
        ("logit_bias", {"the": 1}, "logit_bias", "invalid_value", "'the'"),
        ("logit_bias", {"05": 1}, "logit_bias", "invalid_value", "id of a token"),
        ("logit_bias", {"-1": 1}, "logit_bias", "invalid_value", "id of a token"),
        ("logit_bias", dict.fromkeys(map(str, range(1025)), 1), "logit_bias", "object_above_max_length", "1024"),
    ],
)
def test_a_wrong_field_is_named(field, value, param, code, words):
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], field: value}
    with pytest.raises(RequestError) as refused:
        understand(json.dumps(body).encode())
    told = wire_error(refused.value)
    assert (told.status, told.body["error"]["param"], told.body["error"]["code"]) == (400, param, code)
    assert words in told.message


def test_what_is_left_out_has_openais_defaults():
    _, sampling = understand(b'{"model": "m", "messages": [{"role": "user", "content": ""}], "temperature": null}')
    assert (sampling.temperature, sampling.top_p, sampling.n, sampling.max_completion_tokens) == (1, 1, 1, 1024)


def test_bounds_are_told_in_full():
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    for more, shown in (({"seed": 2**63}, f"< {2**63},"), ({"temperature": 2.5}, "<= 2,"), ({"min_p": -0.5}, ">= 0,")):
        with pytest.raises(RequestError) as refused:
            read_chat_request(json.dumps(body | more).encode())
        assert shown in refused.value.message
