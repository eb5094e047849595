"""What the official Python client repeats by itself, and what a repetition does: items 71 and 75.

On SQLite alone: the record of keys and of repeated requests is tested on both databases in test_access.py.
"""

from __future__ import annotations

import json

import httpx
import openai
import pytest

from cut_connections import cut_connections
from server_process import running_server
from serving_models import register_tuned
from tunesmith.record.access import DEFAULT_PROJECT, Access, KeyLimits
from tunesmith.record.database import Database
from tunesmith.record.home import Home

ROW = {"messages": [{"role": "user", "content": "Name a bird"}, {"role": "assistant", "content": "Wren"}]}
TEN_LINES = (json.dumps(ROW) + "\n").encode() * 10
#: Few, so that the next one is seconds away: a request that follows another at once comes in time on any machine.
PER_MINUTE = 20
MAX_FILE_BYTES = 1 << 20
MILLISECONDS_EACH = 60_000 / PER_MINUTE


@pytest.fixture(scope="module")
def server(tmp_path_factory, tiny_folder):
    """A server with a hasty key, a plain one, and a model whose weights are broken."""
    folder = tmp_path_factory.mktemp("retries")
    home = Home(folder / "home")
    broken = register_tuned(tiny_folder("smollm2"), home)
    (broken.folder / "adapter_model.safetensors").write_bytes(b"broken")
    url = f"sqlite:///{home.root / 'record.db'}"
    database = Database(url)
    database.migrate()
    access = Access(database)
    access.ensure_default_project()
    _, hasty = access.create_key("hasty", DEFAULT_PROJECT, KeyLimits(requests_per_minute=PER_MINUTE))
    _, plain = access.create_key("plain", DEFAULT_PROJECT)
    database.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_DATABASE_URL", url)
        with running_server(folder / "log", home.root, dtype="float32", max_file_bytes=MAX_FILE_BYTES) as running:
            yield f"{running.url}/v1", hasty, plain, broken.name


def counting_client(url, key, before=lambda: None):
    """A client with its usual two repetitions, and the statuses of the replies that it gets."""
    statuses = []
    hooks = {"request": [lambda _: before()], "response": [lambda reply: statuses.append(reply.status_code)]}
    return openai.OpenAI(base_url=url, api_key=key, http_client=httpx.Client(event_hooks=hooks)), statuses


def test_item_71_a_429_is_repeated_twice_when_the_server_says(server):
    url, hasty, _, _ = server
    with httpx.Client(headers={"authorization": f"Bearer {hasty}"}) as http:

        def use_up():
            """Leave nothing for the next request, which follows at once."""
            while True:
                reply = http.get(f"{url}/models")
                if reply.status_code == 429 and int(reply.headers["retry-after-ms"]) > 0.8 * MILLISECONDS_EACH:
                    return

        client, statuses = counting_client(url, hasty, use_up)
        with pytest.raises(openai.RateLimitError) as refused:
            client.models.list()
    assert statuses == [429, 429, 429]
    assert int(refused.value.response.headers["retry-after-ms"]) <= MILLISECONDS_EACH
    assert "x-should-retry" not in refused.value.response.headers


def test_item_71_a_500_that_says_so_is_not_repeated(server):
    url, _, plain, broken = server
    client, statuses = counting_client(url, plain)
    with pytest.raises(openai.InternalServerError) as failed:
        client.chat.completions.create(model=broken, messages=[{"role": "user", "content": "Hello"}])
    assert failed.value.response.headers["x-should-retry"] == "false"
    assert statuses == [500]


def test_item_75_an_upload_whose_answer_was_lost_makes_one_file(server):
    url, _, plain, _ = server
    with cut_connections(url) as cut:
        client, statuses = counting_client(cut, plain)
        made = client.files.with_raw_response.create(
            file=("lost.jsonl", TEN_LINES), purpose="fine-tune", extra_headers={"Idempotency-Key": "lost"}
        )
    assert statuses == [200]
    assert made.headers["idempotent-replayed"] == "true"
    files = openai.OpenAI(base_url=url, api_key=plain).files.list()
    assert [one.id for one in files if one.filename == "lost.jsonl"] == [made.parse().id]


def test_a_repetition_is_read_only_as_far_as_a_file_may_go(server):
    url, _, plain, _ = server
    headers = {"authorization": f"Bearer {plain}", "idempotency-key": "large"}
    form = {"data": {"purpose": "user_data"}, "files": {"file": ("a.bin", b"a")}}
    assert httpx.post(f"{url}/files", headers=headers, **form).status_code == 200
    kind = {"content-type": "multipart/form-data; boundary=b"}
    more = (b"x" * 65_536 for _ in range(6 * MAX_FILE_BYTES // 65_536))
    reply = httpx.post(f"{url}/files", headers=headers | kind, content=more, timeout=60)
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "file_too_large")
