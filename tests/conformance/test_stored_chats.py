"""Item 64: chats that are stored, with the official client, on both databases."""

from __future__ import annotations

import threading
import time

import httpx
import openai
import pytest

from server_process import running_server
from tiny_models import LONG_ANSWER_TOKENS, LONG_CONTEXT_TOKENS, save_tiny_model
from tunesmith.record.database import Database

HELLO = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
TOOLS = [{"type": "function", "function": {"name": "leave", "parameters": {"type": "object", "properties": {}}}}]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def stored_server(request, tmp_path_factory):
    """A server with a tiny base, and the URL of its database."""
    folder = tmp_path_factory.mktemp("stored")
    base = save_tiny_model("qwen2", folder / "tiny", context_tokens=LONG_CONTEXT_TOKENS)
    home = folder / "home"
    url = f"sqlite:///{home / 'record.db'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql_cluster").create()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_DATABASE_URL", url)
        named = {"models": [str(base)], "aliases": [f"gpt-4o-mini={base}"]}
        with running_server(folder / "log", home, **named, dtype="float32") as server:
            yield server, url


@pytest.fixture
def server(stored_server):
    return stored_server[0]


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def ask(client, **settings):
    return client.chat.completions.create(
        **{"model": "tiny", "messages": HELLO, "max_tokens": 6, "store": True, **settings}
    )


def test_item_64_a_stored_chat_is_listed_read_changed_and_deleted(client):
    label = {"test": "one", "empty": ""}
    asked = ask(client, metadata=label, user="me", seed=5, top_p=0.5, tools=TOOLS, tool_choice="none")
    other = ask(client, metadata={"test": "two"})
    bare = ask(client)
    unlabelled = client.chat.completions.list(extra_query={"metadata": "null"}).data
    assert bare.id in [one.id for one in unlabelled] and not any(one.metadata for one in unlabelled)
    ask(client, store=False, metadata=label)
    (listed,) = client.chat.completions.list(metadata={"test": "one"}, model="tiny").data
    kept = client.chat.completions.retrieve(asked.id)
    assert listed == kept
    assert (kept.choices, kept.usage, kept.created) == (asked.choices, asked.usage, asked.created)
    assert kept.model_extra["request_id"] == asked._request_id
    echoes = {"seed": 5, "top_p": 0.5, "temperature": 1.0, "input_user": "me", "tools": TOOLS, "tool_choice": "none",
              "presence_penalty": 0.0, "frequency_penalty": 0.0, "response_format": None}  # fmt: skip
    assert {name: kept.model_extra[name] for name in echoes} == echoes
    assert kept.metadata == {"empty": "", "test": "one"}
    assert [one.id for one in client.chat.completions.list(metadata={"empty": ""}).data] == [asked.id]
    assert not client.chat.completions.list(model="none").data
    (aliased,) = client.chat.completions.list(model="gpt-4o-mini", metadata={"test": "one"}).data
    assert aliased == kept
    assert not client.chat.completions.list(metadata={"test": "one", "empty": "x"}).data

    messages = client.chat.completions.messages.list(asked.id).data
    assert [(one.id, one.role, one.content) for one in messages] == [
        (f"{asked.id}-0", "system", "Be brief."),
        (f"{asked.id}-1", "user", "Hello"),
    ]
    assert messages[0].content_parts is None and messages[1].content_parts[0].text == "Hello"
    (last,) = client.chat.completions.messages.list(asked.id, order="desc", limit=1).data
    assert last.id == f"{asked.id}-1"
    (last,) = client.chat.completions.messages.list(asked.id, after=f"{asked.id}-0").data
    assert last.id == f"{asked.id}-1"

    changed = client.chat.completions.update(asked.id, metadata={"test": "three"})
    assert changed.metadata == {"test": "three"} and changed.choices == asked.choices
    assert client.chat.completions.update(asked.id, metadata=None).metadata == {}
    gone = client.chat.completions.delete(asked.id)
    assert (gone.id, gone.object, gone.deleted) == (asked.id, "chat.completion.deleted", True)
    for call in (
        client.chat.completions.retrieve,
        client.chat.completions.delete,
        client.chat.completions.messages.list,
        lambda one: client.chat.completions.update(one, metadata={}),
    ):
        with pytest.raises(openai.NotFoundError):
            call(asked.id)
    assert client.chat.completions.retrieve(other.id).id == other.id


def test_item_64_what_is_not_stored_is_not_there(client):
    for settings in ({"store": False}, {"store": None}):
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.retrieve(ask(client, **settings).id)
    stream = ask(client, store=False, stream=True)
    chunks = list(stream)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.retrieve(chunks[0].id)


def wait_until_idle(server):
    """Wait until nobody is answered any more, but the one who asks."""
    until = time.monotonic() + 60
    while server.figure("tunesmith_requests_in_flight") != 1:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_item_64_streams_are_stored_as_they_were_told(client):
    settings = {"seed": 3, "n": 2, "max_tokens": 12, "stream_options": {"include_usage": True}}
    chunks = list(ask(client, stream=True, **settings))
    kept = client.chat.completions.retrieve(chunks[0].id)
    whole = ask(client, seed=3, n=2, max_tokens=12)
    assert [one.message.content for one in kept.choices] == [one.message.content for one in whole.choices]
    assert kept.usage == chunks[-1].usage and kept.created == chunks[0].created
    # Ids of calls are drawn at random, so they show that it is the same answer.
    calls = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 100}
    chunks = list(ask(client, stream=True, **calls))
    (call_id,) = [call.id for chunk in chunks for call in chunk.choices[0].delta.tool_calls or [] if call.id]
    (call,) = client.chat.completions.retrieve(chunks[0].id).choices[0].message.tool_calls
    assert call.id == call_id and call.function.name == "leave"


def test_item_64_who_leaves_early_has_no_answer_so_there_is_nothing_to_store(client, server):
    with ask(client, stream=True, max_tokens=LONG_ANSWER_TOKENS, extra_body={"ignore_eos": True}) as stream:
        left = next(stream).id
    wait_until_idle(server)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.retrieve(left)


def test_item_64_pages_are_in_order_and_whole(client):
    made = [ask(client, metadata={"paged": "yes"}, max_tokens=1).id for _ in range(5)]
    for order, expected in (("asc", made), ("desc", made[::-1])):
        pages = client.chat.completions.list(metadata={"paged": "yes"}, limit=2, order=order)
        assert pages.has_more and [one.id for one in pages] == expected
    first = client.chat.completions.list(metadata={"paged": "yes"}, limit=2)
    assert [one.id for one in first.data] == made[:2]  # the oldest first


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "param"),
    [
        ("GET", "?limit=0", None, 400, "limit"),
        ("GET", "?limit=101", None, 400, "limit"),
        ("GET", "?after=chatcmpl-none", None, 400, "after"),
        ("GET", "?order=up", None, 400, "order"),
        ("GET", "?metadata=x", None, 400, "metadata"),
        ("GET", "/chatcmpl-" + "a" * 24, None, 404, "completion_id"),
        ("GET", "/%2e%2e", None, 404, "completion_id"),
        ("GET", "/" + "a" * 10_000, None, 404, "completion_id"),
        ("GET", "/\N{CAT}", None, 404, "completion_id"),
        ("GET", "/a%00b", None, 404, None),
        ("GET", "/chatcmpl-" + "a" * 24 + "/messages", None, 404, "completion_id"),
        ("POST", "/chatcmpl-" + "a" * 24, {"metadata": {}}, 404, "completion_id"),
        ("POST", "/chatcmpl-" + "a" * 24, {}, 400, "metadata"),
        ("POST", "/chatcmpl-" + "a" * 24, {"metadata": {"a": 1}}, 400, "metadata.a"),
        ("POST", "/chatcmpl-" + "a" * 24, {"metadata": {}, "model": "x"}, 400, "model"),
    ],
)
def test_what_cannot_be_is_refused(server, method, path, body, status, param):
    reply = httpx.request(method, f"{server.url}/v1/chat/completions{path}", json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (status, param), reply.text


def test_a_slow_record_keeps_nobody_waiting_who_stores_nothing(client, stored_server):
    _, url = stored_server
    database = Database(url)
    ask(client, store=False)
    stored: list[openai.types.chat.ChatCompletion] = []
    # Somebody who waits for more than a quarter of a minute would be told to come back.
    patient = client.with_options(max_retries=5)
    asking = [threading.Thread(target=lambda: stored.append(ask(patient, max_tokens=2))) for _ in range(8)]
    with database.write():
        for one in asking:
            one.start()
        time.sleep(0.5)
        began = time.monotonic()
        for _ in range(3):
            ask(client, store=False, max_tokens=2)
        assert time.monotonic() - began < 12  # less than those who store something are kept waiting
        # Nobody was told that an answer is stored before it was.
        assert not stored
    for one in asking:
        one.join()
    assert len(stored) == 8
    for one in stored:
        assert client.chat.completions.retrieve(one.id).choices == one.choices
    database.close()
