"""Who is let in and what a refusal looks like: catalogue A01 to A04, A25, A26, B22, B23; contract items 69 to 75."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest
from fastapi.routing import iter_route_contexts
from sqlalchemy import select, update

from server_process import ServerProcess, running_server
from tunesmith.record.access import DEFAULT_PROJECT, Access, KeyLimits, day_of
from tunesmith.record.audit import AuditLog
from tunesmith.record.database import Database
from tunesmith.record.tables import files, keys, metadata
from tunesmith.rest.app import create_app
from tunesmith.rest.guard import OPEN_PATHS
from tunesmith.rest.platform import open_platform
from tunesmith.serve.catalogue import Catalogue
from tunesmith.serve.pool import ModelPool
from tunesmith.specs.serving import ServeSpec

ROW = {"messages": [{"role": "user", "content": "Name a bird"}, {"role": "assistant", "content": "Wren"}]}
TEN_LINES = (json.dumps(ROW) + "\n").encode() * 10
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD")
#: Routes that answer without a key, and why: load balancers ask them, and they tell nothing.
ALLOWED = {"/healthz", "/readyz"}


@dataclass
class LockedServer:
    """A server with keys of two projects, and what stands behind it."""

    server: ServerProcess
    database: Database
    home: Path
    secrets: dict[str, str]

    @property
    def url(self) -> str:
        return self.server.url

    def client(self, who: str, **more) -> openai.OpenAI:
        settings = {"base_url": f"{self.url}/v1", "api_key": self.secrets[who], "max_retries": 0, **more}
        return openai.OpenAI(**settings)

    def header(self, who: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.secrets[who]}"}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def locked(request, tmp_path_factory):
    """A server on an empty record in which keys were made, once on each database."""
    folder = tmp_path_factory.mktemp("locked")
    home = folder / "home"
    url = f"sqlite:///{home / 'record.db'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql_cluster").create()
    database = Database(url)
    database.migrate()
    access = Access(database)
    access.ensure_default_project()
    other = access.create_project("other").id
    secrets = {"mine": access.create_key("mine", DEFAULT_PROJECT)[1], "theirs": access.create_key("theirs", other)[1]}
    secrets["revoked"] = access.create_key("revoked", DEFAULT_PROJECT)[1]
    secrets["short"] = access.create_key("short", DEFAULT_PROJECT, expires_at=int(time.time()) + 3600)[1]
    secrets["hasty"] = access.create_key("hasty", DEFAULT_PROJECT, KeyLimits(requests_per_minute=2))[1]
    secrets["poor"] = access.create_key("poor", DEFAULT_PROJECT, KeyLimits(tokens_per_day=10))[1]
    access.revoke_key("revoked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_DATABASE_URL", url)
        with running_server(folder / "log", home, api_keys=["the-servers-own-key"]) as server:
            yield LockedServer(server, database, home, secrets)
    database.close()


def is_envelope(reply, status, code):
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"} and error["message"]
    assert error["code"] == code
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"].startswith("req_")
    return error


def live_routes(tmp_path, monkeypatch):
    """Return every path and its methods, from the router of the application that `tunesmith serve` runs."""
    from tunesmith.record.home import Home

    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TUNESMITH_DATABASE_URL", raising=False)
    home = Home.from_environment()
    pool = ModelPool(Catalogue(home, []), home)
    platform = open_platform(ServeSpec(), home, pool)
    app = create_app(pool, ServeSpec(), platform)
    routes = {(route.path, method) for route in iter_route_contexts(app.routes) for method in route.methods or ()}
    platform.close()
    pool.close()
    return routes


def test_a01_every_route_needs_a_key(locked, tmp_path, monkeypatch):
    routes = live_routes(tmp_path, monkeypatch)
    paths = {path for path, _ in routes}
    assert {"/v1/models", "/v1/chat/completions", "/v1/files", "/v1/uploads/{upload_id}/parts", "/healthz"} <= paths
    assert OPEN_PATHS == ALLOWED
    tried = [(path, method) for path in sorted(paths) for method in METHODS if path not in ALLOWED]
    for headers in ({}, {"authorization": "Basic abc"}, locked.header("revoked")):
        with httpx.Client(base_url=locked.url, headers=headers) as http:
            for path, method in tried:
                reply = http.request(method, path.replace("{", "").replace("}", ""))
                refused_once = reply.status_code == 401
                assert refused_once or (headers and reply.status_code == 429), (method, path)
    assert httpx.get(f"{locked.url}/healthz").status_code == 200


def test_a04_what_belongs_to_others_is_not_there(locked):
    mine, theirs = locked.client("mine"), locked.client("theirs")
    made = mine.files.create(file=("mine.jsonl", TEN_LINES), purpose="fine-tune")
    for call in (theirs.files.retrieve, theirs.files.delete, theirs.files.content):
        with pytest.raises(openai.NotFoundError) as foreign:
            call(made.id)
        with pytest.raises(openai.NotFoundError) as missing:
            call("file-nothing")
        assert foreign.value.body["message"].replace(made.id, "file-nothing") == missing.value.body["message"]
    assert made.id not in [one.id for one in theirs.files.list()]
    with pytest.raises(openai.BadRequestError):
        theirs.files.list(after=made.id)
    assert mine.files.retrieve(made.id).id == made.id


def test_item_73_keys_and_the_headers_of_projects(locked):
    forget_guesses(locked)
    with pytest.raises(openai.AuthenticationError) as refused:
        locked.client("mine", api_key="sk-wrong").models.list()
    assert refused.value.code == "invalid_api_key"
    assert locked.client("mine", organization="org-elsewhere", project=DEFAULT_PROJECT).models.list()
    assert locked.client("theirs", project="other").models.list()
    with pytest.raises(openai.AuthenticationError) as refused:
        locked.client("theirs", project=DEFAULT_PROJECT).models.list()
    assert refused.value.code == "mismatched_project"
    assert locked.client("mine", api_key="the-servers-own-key", project="proj_of_long_ago").models.list()


def test_a25_no_secret_is_kept_anywhere(locked):
    wrong = "sk-" + "w" * 48
    for key in (locked.secrets["mine"], locked.secrets["revoked"], wrong, "the-servers-own-key"):
        for path in ("/v1/files", f"/v1/files/{key}", f"/v1/files?after={key}"):
            headers = {"authorization": f"Bearer {key}", "Idempotency-Key": key}
            httpx.get(locked.url + path, headers=headers)
            last = httpx.delete(locked.url + path, headers=headers)
    entries_until(locked, last.headers["x-request-id"])
    secrets = [secret.encode() for secret in (*locked.secrets.values(), wrong, "the-servers-own-key")]
    kept = [locked.server.errors.read_bytes()]
    kept += [path.read_bytes() for path in locked.home.rglob("*") if path.is_file()]
    with locked.database.read() as connection:
        kept += [repr(connection.execute(select(table)).all()).encode() for table in metadata.sorted_tables]
    assert any(b"audit_" in text for text in kept)
    for secret in secrets:
        assert not [text for text in kept if secret in text]


def test_a26_guessing_ends_and_right_keys_go_on(locked):
    own = {"authorization": "Bearer the-servers-own-key"}
    with httpx.Client(base_url=locked.url) as http:
        forget_guesses(locked)
        began = time.monotonic()
        guesses = [http.get("/v1/models", headers={"authorization": f"Bearer sk-{n:048}"}) for n in range(1000)]
        statuses = [reply.status_code for reply in guesses]
        # Sixty at once, and one more with each second that it takes.
        assert set(statuses) == {401, 429} and statuses.count(401) <= 61 + time.monotonic() - began
        last = next(reply for reply in reversed(guesses) if reply.status_code == 429)
        is_envelope(last, 429, "rate_limit_exceeded")
        assert last.headers["x-should-retry"] == "false" and int(last.headers["retry-after"]) >= 1
        for right in (own, locked.header("mine")):
            assert http.get("/v1/models", headers=right).status_code == 200


def test_requests_of_a_key_are_limited_and_it_is_told(locked):
    with httpx.Client(base_url=locked.url, headers=locked.header("hasty")) as http:
        replies = [http.get("/v1/models") for _ in range(3)]
    assert [reply.status_code for reply in replies] == [200, 200, 429]
    assert replies[0].headers["x-ratelimit-limit-requests"] == "2"
    assert replies[0].headers["x-ratelimit-remaining-requests"] == "1"
    is_envelope(replies[2], 429, "rate_limit_exceeded")
    assert 0 < int(replies[2].headers["retry-after-ms"]) <= 30_000
    assert replies[2].headers["x-ratelimit-remaining-requests"] == "0"
    assert "x-should-retry" not in replies[2].headers


def test_the_tokens_of_a_day_are_limited(locked):
    key = key_called(locked, "poor")
    assert locked.client("poor").models.list()
    Access(locked.database).note_use({}, {(key.id, day_of(time.time())): 12})
    time.sleep(1.1)
    reply = httpx.get(f"{locked.url}/v1/models", headers=locked.header("poor"))
    is_envelope(reply, 429, "insufficient_quota")
    assert reply.headers["x-should-retry"] == "false"
    assert reply.headers["x-ratelimit-remaining-tokens"] == "0"


@pytest.mark.parametrize(
    ("content", "kind", "status", "code"),
    [
        (b"{}", "text/plain", 415, "unsupported_content_type"),
        (b"{}", "multipart/form-data; boundary=x", 415, "unsupported_content_type"),
        (b"{} trailing", "application/json", 400, "invalid_json"),
        (b'{"bytes": 1', "application/json", 400, "invalid_json"),
        (b"[]", "application/json", 400, "invalid_type"),
        (b'{"colour": 1}', "application/json", 400, None),
    ],
)
@pytest.mark.parametrize("path", ["/v1/uploads", "/v1/chat/completions"])
def test_b22_bodies_that_are_not_what_they_say(locked, path, content, kind, status, code):
    headers = {**locked.header("mine"), "content-type": kind}
    reply = httpx.post(locked.url + path, content=content, headers=headers)
    assert reply.status_code == status, reply.text
    error = is_envelope(reply, status, code or reply.json()["error"]["code"])
    assert reply.headers["x-should-retry"] == "false" and error["type"] == "invalid_request_error"
    if code is None:  # item 74: one policy on unknown fields
        assert error["code"] in ("unknown_parameter", "missing_required_parameter")


def test_item_69_70_every_refusal_has_the_envelope(locked):
    cases = [
        ("GET", "/nowhere", 404, "unknown_url"),
        ("PATCH", "/v1/files", 405, "method_not_allowed"),
        ("GET", "/v1/files?limit=a", 400, "invalid_type"),
        ("GET", "/v1/files?limit=0", 400, "integer_below_min_value"),
        ("GET", "/v1/files?order=sideways", 400, "invalid_value"),
        ("GET", "/v1/files?after=file-nothing", 400, "invalid_cursor"),
    ]
    for method, path, status, code in cases:
        reply = httpx.request(method, locked.url + path, headers=locked.header("mine"))
        is_envelope(reply, status, code)
        if status == 405:
            assert reply.headers["allow"] == "GET, POST"


def forget_guesses(locked):
    """Wait until other tests' guesses are forgotten, and make the server's own key one that was right before."""
    give_up = time.monotonic() + 60
    while (
        httpx.get(f"{locked.url}/v1/models", headers={"authorization": "Bearer the-servers-own-key"}).status_code != 200
    ):
        assert time.monotonic() < give_up
        time.sleep(1)


def entries_until(locked, request_id):
    """The audit log, by requests, once one of them is in it: entries are written a moment later."""
    give_up = time.monotonic() + 60
    while True:
        entries = {entry.request_id: entry for entry in AuditLog(locked.database).read(limit=10_000)}
        if request_id in entries:
            return entries
        assert time.monotonic() < give_up
        time.sleep(0.1)


def key_called(locked, name):
    found = Access(locked.database).keys()
    return next(key for key in found if key.name == name)


def create(locked, key, content=TEN_LINES):
    return httpx.post(
        f"{locked.url}/v1/files",
        headers={**locked.header("mine"), "Idempotency-Key": key},
        data={"purpose": "fine-tune"},
        files={"file": ("rows.jsonl", content)},
        timeout=120,
    )


def files_in(locked):
    with locked.database.read() as connection:
        return len(connection.execute(select(files.c.id)).all())


def test_b23_a_repeated_create_makes_one_object(locked):
    before = files_in(locked)
    first, again = create(locked, "one"), create(locked, "one")
    assert first.status_code == again.status_code == 200
    assert first.content == again.content and first.headers["x-request-id"] != again.headers["x-request-id"]
    assert again.headers["idempotent-replayed"] == "true" and "idempotent-replayed" not in first.headers
    other = create(locked, "one", TEN_LINES * 2)
    is_envelope(other, 409, "idempotency_key_reused")
    assert other.headers["x-should-retry"] == "false"
    # What was refused leaves its key free.
    assert create(locked, "two", b"[]\n").status_code == 400
    assert create(locked, "two").status_code == 200
    assert files_in(locked) == before + 2
    is_envelope(create(locked, "x" * 256), 400, "invalid_idempotency_key")


def test_b23_twenty_at_once_make_one_object(locked):
    before = files_in(locked)
    with ThreadPoolExecutor(20) as pool:
        replies = list(pool.map(lambda _: create(locked, "twenty"), range(20)))
    assert {reply.status_code for reply in replies} == {200}
    assert len({reply.json()["id"] for reply in replies}) == 1
    assert files_in(locked) == before + 1


def test_item_75_a_retry_of_the_client_is_detectable(locked):
    key = {"Idempotency-Key": "lost"}
    made = [
        locked.client("mine").files.with_raw_response.create(
            file=("rows.jsonl", TEN_LINES), purpose="fine-tune", extra_headers=key
        )
        for _ in range(2)
    ]
    assert made[0].parse().id == made[1].parse().id
    assert made[1].headers["idempotent-replayed"] == "true"


def test_a01_a_key_that_has_expired_is_refused_at_once(locked):
    def ask():
        return httpx.get(f"{locked.url}/v1/files", headers=locked.header("short"))

    expires_at = int(time.time()) + 4
    with locked.database.write() as connection:
        connection.execute(update(keys).where(keys.c.name == "short").values(expires_at=expires_at))
    time.sleep(1.1)  # what the server had read before is forgotten
    for at in (0.0, expires_at - 0.5):
        time.sleep(max(0.0, at - time.time()))
        known = ask().status_code  # which it knows for a second; on a busy machine the time may be over by now
        assert known == 200 or time.time() >= expires_at
    time.sleep(max(0.0, expires_at - time.time()))
    for _ in range(2):
        assert "expired" in is_envelope(ask(), 401, "invalid_api_key")["message"]


def test_changes_and_refusals_are_in_the_audit_log(locked):
    client = locked.client("mine")
    made = client.files.with_raw_response.create(file=("rows.jsonl", TEN_LINES), purpose="fine-tune")
    gone = client.files.with_raw_response.delete(made.parse().id)
    client.files.list()
    refused = httpx.delete(f"{locked.url}/v1/files/{made.parse().id}")
    entries = entries_until(locked, refused.headers["x-request-id"])
    created, deleted = entries[made.headers["x-request-id"]], entries[gone.headers["x-request-id"]]
    assert (created.method, created.route, created.status) == ("POST", "/v1/files", 200)
    assert (deleted.method, deleted.target, deleted.project_id) == ("DELETE", made.parse().id, DEFAULT_PROJECT)
    assert created.key_id == deleted.key_id and created.key_id.startswith("key_")
    assert entries[refused.headers["x-request-id"]].status == 401
    assert {entry.method for entry in entries.values() if entry.status == 200} <= {"POST", "DELETE"}
    give_up = time.monotonic() + 60  # written behind the entries
    while (used := key_called(locked, "mine")).last_used_at is None:
        assert time.monotonic() < give_up
        time.sleep(0.1)
    assert abs(used.last_used_at - time.time()) < 600


def test_a_stop_in_order_loses_no_entry(tmp_path, monkeypatch):
    monkeypatch.delenv("TUNESMITH_DATABASE_URL", raising=False)
    home = tmp_path / "home"
    with running_server(tmp_path / "log", home) as server:
        replies = [httpx.delete(f"{server.url}/v1/files/file-{n}") for n in range(20)]
        assert server.stop() == 0
    entries = AuditLog(Database(f"sqlite:///{home / 'record.db'}")).read(limit=1000)
    assert [entry.request_id for entry in entries] == [reply.headers["x-request-id"] for reply in replies]
