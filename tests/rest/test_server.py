"""Who is let in, what is refused and how, and how the server starts and stops."""

from __future__ import annotations

import http.client
import signal
import socket
import threading
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from server_process import running_server
from tiny_models import LONG_ANSWER_TOKENS
from tunesmith.errors import ModelError, SpecError
from tunesmith.rest.server import run_server
from tunesmith.specs.serving import ServeSpec

HELLO = [{"role": "user", "content": "Hello"}]
GOOD = {"model": "tiny", "messages": HELLO, "max_tokens": 2}
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOLS = [{"type": "function", "function": {"name": "f"}}]
CHAT = "/v1/chat/completions"


def is_envelope(reply):
    error = reply.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"] and error["code"]
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"]
    assert "Traceback" not in reply.text and "/site-packages" not in reply.text and "/tmp" not in reply.text
    return error


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"model": None}, "model", "missing_required_parameter"),
        ({"messages": None}, "messages", "missing_required_parameter"),
        ({"messages": []}, "messages", "empty_array"),
        ({"messages": "Hello"}, "messages", "invalid_type"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "human", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "invalid_type"),
        ({"messages": [{"role": "user", "content": "x", "colour": 1}]}, "messages[0].colour", "unknown_parameter"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
         "messages[0].content[0]", "unsupported_parameter"),
        ({"messages": [*HELLO, {"role": "tool", "tool_call_id": "a", "content": "x"}]},
         "messages[1].tool_call_id", "invalid_value"),
        ({"messages": [{"role": "assistant", "tool_calls": [CALL]}]}, "messages", "invalid_value"),
        ({"temperature": 2.5}, "temperature", "decimal_above_max_value"),
        ({"temperature": -1}, "temperature", "decimal_below_min_value"),
        ({"temperature": "1"}, "temperature", "invalid_type"),
        ({"top_p": 1.1}, "top_p", "decimal_above_max_value"),
        ({"n": 10**9}, "n", "integer_above_max_value"),
        ({"n": 0}, "n", "integer_below_min_value"),
        ({"n": True}, "n", "invalid_type"),
        ({"max_tokens": -1}, "max_tokens", "integer_below_min_value"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", "integer_below_min_value"),
        ({"max_tokens": 1.5}, "max_tokens", "invalid_type"),
        ({"seed": 2**63}, "seed", "integer_above_max_value"),
        ({"stop": ["a"] * 5}, "stop", "array_above_max_length"),
        ({"stop": ""}, "stop", "empty_string"),
        ({"stop": [1]}, "stop", "invalid_type"),
        ({"logprobs": True, "top_logprobs": 10**6}, "top_logprobs", "integer_above_max_value"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown_parameter"),
        ({"colour": "red"}, "colour", "unknown_parameter"),
        ({"colour": None}, "colour", "unknown_parameter"),
        ({"response_format": "json"}, "response_format", "invalid_type"),
        ({"store": 1}, "store", "invalid_type"),
        ({"functions": []}, "functions", "empty_array"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]},
         "tools[0].function.parameters", "invalid_function_parameters"),
        ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice", "invalid_value"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "g"}}},
         "tool_choice", "invalid_value"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}},
         "tool_choice", "invalid_value"),
        ({"tools": TOOLS, "parallel_tool_calls": "no"}, "parallel_tool_calls", "invalid_type"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type", "invalid_value"),
        ({"messages": [{"role": "user", "content": "word " * 2000}]}, "messages", "context_length_exceeded"),
    ],
)  # fmt: skip
def test_what_cannot_be_obeyed_is_refused_before_the_model(server, change, param, code):
    reply = httpx.post(server.url + CHAT, json={**GOOD, **change})
    error = is_envelope(reply)
    assert (reply.status_code, error["type"]) == (400, "invalid_request_error")
    assert (error["param"], error["code"]) == (param, code)
    assert reply.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("method", "path", "content", "kind", "status", "code"),
    [
        ("POST", CHAT, b"{", "application/json", 400, "invalid_json"),
        ("POST", CHAT, b"", "application/json", 400, "invalid_json"),
        ("POST", CHAT, b"[]", "application/json", 400, "invalid_type"),
        ("POST", CHAT, b"\xff\xfe", "application/json", 400, "invalid_encoding"),
        ("POST", CHAT, b'{"temperature": NaN}', "application/json", 400, "invalid_number"),
        ("POST", CHAT, b'{"model": "a", "model": "b"}', "application/json", 400, "duplicate_key"),
        ("POST", CHAT, b'{"model": "\\ud800"}', "application/json", 400, "invalid_encoding"),
        ("POST", CHAT, b"[" * 100_000, "application/json", 400, "too_deep"),
        ("POST", CHAT, b"{}", "text/plain", 415, "unsupported_content_type"),
        ("POST", CHAT, b"{}", "", 415, "unsupported_content_type"),
        ("POST", CHAT, b" " * (2 << 20), "application/json", 413, "request_too_large"),
        ("PUT", CHAT, b"", "", 405, "method_not_allowed"),
        ("PUT", "/v1/models/tiny", b"", "", 405, "method_not_allowed"),
        ("GET", "/v1/fine_tuning", b"", "", 404, "unknown_url"),
        ("GET", "/", b"", "", 404, "unknown_url"),
        ("GET", "/v1/models/", b"", "", 404, "model_not_found"),
        ("GET", "/v1/models/..%2F..%2Fetc", b"", "", 404, "model_not_found"),
    ],
)
def test_every_refusal_has_the_same_shape(server, method, path, content, kind, status, code):
    reply = httpx.request(method, server.url + path, content=content, headers={"content-type": kind} if kind else {})
    assert (reply.status_code, is_envelope(reply)["code"]) == (status, code)


def test_a_body_of_unknown_length_is_bounded_too(server):
    pieces = (b" " * 65536 for _ in range(40))
    reply = httpx.post(server.url + CHAT, content=pieces, headers={"content-type": "application/json"})
    assert (reply.status_code, is_envelope(reply)["code"]) == (413, "request_too_large")


def test_the_schema_of_requests_is_published(server):
    schema = httpx.get(f"{server.url}/openapi.json").json()
    body = schema["paths"][CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"model", "messages", "temperature"} <= body["properties"].keys()


def raw_status(url, **headers):
    """Send a request whose `Host` is the caller's own choice."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=20)
    connection.putrequest("GET", "/v1/models", skip_host=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("localhost", None, 200),
        ("LOCALHOST:80", None, 200),
        ("127.0.0.1:1", "http://localhost:3000", 200),
        ("[::1]:8000", "http://[::1]", 200),
        ("evil.example", None, 403),
        ("127.0.0.1.evil.example", None, 403),
        ("localhost", "https://evil.example", 403),
        ("localhost", "null", 403),
        ("localhost", "http://[", 403),
        ("", None, 403),
    ],
)
def test_other_sites_cannot_use_a_server_without_a_key(server, host, origin, status):
    more = {} if origin is None else {"Origin": origin}
    assert raw_status(server.url, Host=host, **more) == status


def test_a_key_opens_every_door_and_nothing_else_does(tuned, slow, tmp_path):
    base, home, _ = tuned
    settings = {"models": [str(base), str(slow)], "dtype": "float32", "shutdown_seconds": 100}
    with running_server(tmp_path, home.root, api_keys=["one", "two"], **settings) as server:
        for path in ("/v1/models", "/v1/models/tiny", CHAT, "/openapi.json", "/nowhere", "/healthz/x"):
            for headers in (
                {},
                {"authorization": "Bearer on"},
                {"authorization": "one"},
                {"authorization": "Basic one"},
            ):
                reply = httpx.get(server.url + path, headers=headers)
                assert (reply.status_code, is_envelope(reply)["code"]) == (401, "invalid_api_key")
        assert httpx.get(f"{server.url}/healthz").json() == {"status": "ok"}
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="three").models.list()
        for key in ("one", "two"):
            client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=key)
            assert [model.id for model in client.models.list()] == ["tiny", "slow"]
        assert raw_status(server.url, Host="my.own.name", Authorization="Bearer one") == 200

        # Told to stop, it finishes what it has begun.
        asked = {"model": "slow", "messages": HELLO, "temperature": 0, "max_tokens": 900}
        with client.chat.completions.create(**asked, stream=True) as stream:
            next(stream)
            stopped = threading.Thread(target=server.stop, args=(signal.SIGINT,))
            stopped.start()
            *_, last = stream
            assert last.choices[0].finish_reason == "length"
        stopped.join()
        assert server.process.returncode == 0
        assert server.errors.read_text() == ""


def test_answers_that_outlast_the_stop_end_with_a_word(slow, tuned, tmp_path):
    _, home, _ = tuned
    with running_server(tmp_path, home.root, models=[str(slow)], dtype="float32", shutdown_seconds=1) as stopping:
        client = openai.OpenAI(base_url=f"{stopping.url}/v1", api_key="x", max_retries=0)
        whole: list[Exception] = []

        def ask_whole():
            with pytest.raises(openai.InternalServerError) as failed:
                client.chat.completions.create(
                    model="slow", messages=HELLO, temperature=0, max_tokens=LONG_ANSWER_TOKENS
                )
            whole.append(failed.value)

        asking = threading.Thread(target=ask_whole)
        asking.start()
        stream = client.chat.completions.create(
            model="slow", messages=HELLO, temperature=0, max_tokens=LONG_ANSWER_TOKENS, stream=True
        )
        next(stream)
        stopper = threading.Thread(target=stopping.stop)
        stopper.start()
        with pytest.raises(openai.APIError) as failed:
            list(stream)
        assert failed.value.code == "stopping"
        asking.join()
        assert whole[0].status_code == 503 and is_envelope(whole[0].response)["code"] == "stopping"
        stopper.join()
        assert stopping.process.returncode == 0
        # Answers that the server owed are worth a line, and nothing else happened.
        assert {line.split(" in ")[0] for line in stopping.errors.read_text().splitlines()} <= {f"POST {CHAT} 503"}


def test_a_port_in_use_is_said_at_once(home):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SpecError) as refused:
        run_server(ServeSpec(port=taken.getsockname()[1]), home)
    assert refused.value.code == "port_in_use" and refused.value.exit_code == 2


def test_an_address_of_another_machine_is_said_at_once(home):
    with pytest.raises(SpecError) as refused:
        run_server(ServeSpec.parse({"host": "192.0.2.1", "api_keys": ["a"]}), home)
    assert refused.value.code == "bad_host"


def test_an_unknown_model_is_said_before_serving(home):
    with pytest.raises(ModelError):
        run_server(ServeSpec(port=0, models=("no-such-model",)), home)
