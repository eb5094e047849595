"""Tokens of prompts and answers are taken from the budget of the key that asked."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from server_process import running_server
from tunesmith.record.access import DEFAULT_PROJECT, Access, KeyLimits
from tunesmith.record.database import Database

HELLO = [{"role": "user", "content": "Hello"}]
BUDGET = 1000
ENCODER = "all-minilm-l6-v2"
#: Of the server, without a budget.
OWN_KEY = "the-servers-own-key"


@pytest.fixture
def budgeted(tuned, tmp_path, monkeypatch):
    """A server, and the header of a key that may use so many tokens a day."""
    base, home, _ = tuned
    url = f"sqlite:///{tmp_path / 'record.db'}"
    monkeypatch.setenv("TUNESMITH_DATABASE_URL", url)
    database = Database(url)
    database.migrate()
    access = Access(database)
    access.ensure_default_project()
    _, secret = access.create_key("poor", DEFAULT_PROJECT, KeyLimits(tokens_per_day=BUDGET))
    settings = {"models": [str(base), ENCODER], "dtype": "float32", "api_keys": [OWN_KEY]}
    with running_server(tmp_path / "log", home.root, **settings) as server:
        yield server, secret


def tokens_left(url: str, secret: str) -> int:
    reply = httpx.get(f"{url}/v1/models", headers={"authorization": f"Bearer {secret}"})
    return int(reply.headers["x-ratelimit-remaining-tokens"])


def wait_for_left(url: str, secret: str, is_right: Callable[[int], bool]) -> int:
    """Wait until as much is left as should be, and return it: what callers leave is counted a moment later."""
    give_up = time.monotonic() + 120
    while not is_right(left := tokens_left(url, secret)):
        assert time.monotonic() < give_up, f"{left} tokens are left"
        time.sleep(0.05)
    return left


def test_whole_answers_and_streams_use_the_budget_up(budgeted):
    server, secret = budgeted
    url = server.url

    def left() -> int:
        return tokens_left(url, secret)

    client = openai.OpenAI(base_url=f"{url}/v1", api_key=secret, max_retries=0)
    ask = client.chat.completions.create
    assert left() == BUDGET
    whole = ask(model="tiny", messages=HELLO, max_tokens=20, n=2)
    assert left() == BUDGET - whole.usage.total_tokens
    before = left()
    options = {"include_usage": True}
    *_, last = ask(model="tiny", messages=HELLO, max_tokens=20, n=2, stream=True, stream_options=options)
    wait_for_left(url, secret, lambda left: left == before - last.usage.total_tokens)
    # Whoever leaves early has used the prompt and what was read.
    before = left()
    with ask(model="tiny", messages=HELLO, max_tokens=500, stream=True) as stream:
        next(stream)
    wait_for_left(url, secret, lambda left: left < before)

    while left():
        ask(model="tiny", messages=HELLO, max_tokens=400)
    with pytest.raises(openai.RateLimitError) as refused:
        ask(model="tiny", messages=HELLO)
    assert refused.value.code == "insufficient_quota"


def test_embeddings_use_the_budget_up_also_for_who_leaves(budgeted):
    server, secret = budgeted
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=secret, max_retries=0)
    made = client.embeddings.create(model=ENCODER, input=["one bird", "two birds"])
    before = tokens_left(server.url, secret)
    assert before == BUDGET - made.usage.total_tokens
    read = 'tunesmith_tokens_total{kind="prompt"}'
    read_before = server.figure(read, OWN_KEY)
    body = json.dumps({"model": ENCODER, "input": ["word " * 200] * 1400}).encode()
    head = f"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {secret}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=120) as caller:
        caller.sendall(head.encode() + body)
        # They leave once something is computed, and long before all is.
        give_up = time.monotonic() + 120
        while server.figure(read, OWN_KEY) == read_before:
            assert time.monotonic() < give_up, "nothing is computed"
            time.sleep(0.02)
    wait_for_left(server.url, secret, lambda left: left < before)
