"""Whatever is sent is either understood or refused with a reason; nothing else ever happens."""

from __future__ import annotations

import json

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


def test_what_is_left_out_has_openais_defaults():
    _, sampling = understand(b'{"model": "m", "messages": [{"role": "user", "content": ""}], "temperature": null}')
    assert (sampling.temperature, sampling.top_p, sampling.n, sampling.max_completion_tokens) == (1, 1, 1, 1024)
