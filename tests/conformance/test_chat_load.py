"""L08: 64 chat streams at once, and what happens past the queue's limit. `pytest --soak -s` tells the times."""

from __future__ import annotations

import asyncio
import statistics
import time

import openai
import pytest

from server_process import running_server
from tiny_models import save_slow_model, save_tiny_model

STREAMS = 64
ANSWER_TOKENS = 64


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base whose steps take as long as Python does, so that all streams grow side by side."""
    return save_tiny_model("smollm2", tmp_path_factory.mktemp("load") / "tiny")


def load(folder, base, **settings):
    return running_server(folder / "log", folder / "home", models=[str(base)], dtype="float32", **settings)


async def answer(client, number, tokens=ANSWER_TOKENS):
    """Stream one answer; return the seconds to its first and its last token."""
    began = time.monotonic()
    first = None
    stream = await client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": f"Table {number}"}],
        max_tokens=tokens,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    async for chunk in stream:
        if first is None and chunk.choices[0].delta.content:
            first = time.monotonic() - began
        reason = chunk.choices[0].finish_reason
    assert reason == "length"
    return first, time.monotonic() - began


def ask_at_once(server, tokens=ANSWER_TOKENS):
    """Return what became of each stream: its times, or the error that it was refused with."""

    async def ask_all():
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=300
        ) as client:
            await answer(client, "to load the model")
            return await asyncio.gather(*(answer(client, i, tokens) for i in range(STREAMS)), return_exceptions=True)

    return asyncio.run(ask_all())


@pytest.mark.soak
def test_l08_64_streams(base, tmp_path):
    with load(tmp_path, base) as server:
        told = ask_at_once(server)
    failed = [one for one in told if isinstance(one, BaseException)]
    assert not failed, failed[0]
    firsts = sorted(first for first, _ in told)
    median = statistics.median(firsts)
    print(
        f"\nL08: first token: median {median:.2f} s, slowest {firsts[-1]:.2f} s; all in {max(t for _, t in told):.2f} s"
    )
    assert firsts[-1] <= 5 * median


@pytest.mark.soak
def test_l08_past_the_limit_callers_are_told_to_come_back(tmp_path):
    # So slow that no answer ends before all have asked.
    slow = save_slow_model("smollm2", tmp_path / "tiny")
    with load(tmp_path, slow, max_batch=16, max_waiting=16) as server:
        told = ask_at_once(server, 900)
    refused = [one for one in told if isinstance(one, BaseException)]
    assert len(refused) >= 1 and len(told) - len(refused) >= 32
    for error in refused:
        assert isinstance(error, openai.RateLimitError) and error.code == "overloaded"
        assert int(error.response.headers["retry-after"]) >= 1
    print(f"\nL08: {len(told) - len(refused)} of {STREAMS} streams answered, {len(refused)} told to come back")
