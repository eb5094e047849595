"""Tokens of prompts and answers are taken from the budget of the key that asked."""

from __future__ import annotations

import time

import httpx
import openai
import pytest

from server_process import running_server
from tunesmith.record.access import DEFAULT_PROJECT, Access, KeyLimits
from tunesmith.record.database import Database

HELLO = [{"role": "user", "content": "Hello"}]
BUDGET = 1000
ENCODER = "all-minilm-l6-v2"


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
    with running_server(tmp_path / "log", home.root, models=[str(base), ENCODER], dtype="float32") as server:
        yield server.url, secret


def tokens_left(url: str, secret: str) -> int:
    reply = httpx.get(f"{url}/v1/models", headers={"authorization": f"Bearer {secret}"})
    return int(reply.headers["x-ratelimit-remaining-tokens"])


def test_whole_answers_and_streams_use_the_budget_up(budgeted):
    url, secret = budgeted

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
    assert left() == before - last.usage.total_tokens
    # Whoever leaves early has used the prompt and what was read.
    before = left()
    with ask(model="tiny", messages=HELLO, max_tokens=500, stream=True) as stream:
        next(stream)
    assert left() <= before

    while left():
        ask(model="tiny", messages=HELLO, max_tokens=400)
    with pytest.raises(openai.RateLimitError) as refused:
        ask(model="tiny", messages=HELLO)
    assert refused.value.code == "insufficient_quota"


def test_embeddings_use_the_budget_up_also_for_who_leaves(budgeted):
    url, secret = budgeted
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=secret, max_retries=0)
    made = client.embeddings.create(model=ENCODER, input=["one bird", "two birds"])
    before = tokens_left(url, secret)
    assert before == BUDGET - made.usage.total_tokens
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=1.0).embeddings.create(model=ENCODER, input=["word " * 200] * 1400)
    give_up = time.monotonic() + 20
    while tokens_left(url, secret) == before:
        assert time.monotonic() < give_up, "what was computed isn't counted"
        time.sleep(0.1)
