"""What stands in queries and paths, on every route that takes it: limits and cursors (B19), ids (B21); unknown fields.

On SQLite alone: what a cursor finds is tested on both databases in tests/record/test_pages.py.
"""

from __future__ import annotations

import http.client
import itertools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx
import pytest
from sqlalchemy import delete, select

from job_models import add_job
from tunesmith.record import tables
from tunesmith.record.access import DEFAULT_PROJECT, Access
from tunesmith.record.completions import Completions, NewCompletion
from tunesmith.record.database import Database
from tunesmith.record.files import Files, NewFile
from tunesmith.record.home import Home
from tunesmith.record.ids import new_id
from tunesmith.record.job_events import NewEvent, add_checkpoint, add_events
from tunesmith.record.responses import Responses
from tunesmith.record.store import Store
from tunesmith.record.webhooks import Webhooks

pytestmark = pytest.mark.parametrize("platform_server", ["sqlite"], indirect=True)

NOW = 2_000_000_000
SHARED = "ft:tiny:local::shared"
#: What a stored completion keeps beside its messages.
ASKED = {
    "tool_choice": None, "seed": None, "top_p": 1.0, "temperature": 1.0, "presence_penalty": 0.0,
    "frequency_penalty": 0.0, "input_user": None, "tools": None, "response_format": None,
}  # fmt: skip
ANSWERED = {
    "created": NOW,
    "model": "tiny",
    "choices": [],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    "system_fingerprint": "fp",
}


@dataclass
class World:
    """A running server's record, with something that every list belongs to."""

    url: str
    home: Home
    database: Database
    job: str
    numbers: itertools.count = field(default_factory=lambda: itertools.count(1))

    def get(self, path: str, **query: object) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", params=query, timeout=60)

    def add_file(self) -> str:
        store = Store.from_environment(self.home)
        new = NewFile(DEFAULT_PROJECT, "rows.jsonl", "fine-tune")
        return Files(self.database, store).create(new, store.add(b"rows")).id

    def add_job(self) -> str:
        return add_job(self.database, self.home, "tiny").id

    def add_event(self) -> str:
        with self.database.write() as connection:
            add_events(connection, self.job, [NewEvent("something")])
            return connection.scalar(select(tables.events.c.id).order_by(tables.events.c.seq.desc()).limit(1))

    def add_checkpoint(self) -> str:
        step = next(self.numbers)
        with self.database.write() as connection:
            made = add_checkpoint(connection, self.job, DEFAULT_PROJECT, step, f"ft:{step}", f"folder-{step}", {})
        return made.id

    def add_permission(self) -> str:
        project = Access(self.database).create_project(f"project {next(self.numbers)}").id
        path = f"/v1/fine_tuning/checkpoints/{SHARED}/permissions"
        reply = httpx.post(self.url + path, json={"project_ids": [project]}, timeout=60)
        return reply.json()["data"][0]["id"]

    def add_completion(self, messages: int = 1) -> str:
        said = [{"role": "user", "content": str(number)} for number in range(messages)]
        completion_id = new_id("chatcmpl-")
        new = NewCompletion(
            id=completion_id,
            created_at=NOW,
            project_id=DEFAULT_PROJECT,
            model="tiny",
            request_id=new_id("req_"),
            messages=said,
            request=ASKED,
            response={"id": completion_id, **ANSWERED},
            metadata={},
        )
        Completions(self.database).add(new)
        return completion_id

    def add_webhook(self) -> str:
        name = f"webhook {next(self.numbers)}"
        return Webhooks(self.database).add(DEFAULT_PROJECT, name, "https://hooks.example/x", ()).id

    def add_response(self, items: int) -> str:
        said = [{"id": new_id("msg_"), "type": "message", "role": "user", "content": []} for _ in range(items)]
        response = {"id": new_id("resp_"), "created_at": NOW, "output": []}
        return Responses(self.database).add(DEFAULT_PROJECT, said, response, None).id


@pytest.fixture(scope="module")
def world(platform_server):
    home = Home(platform_server.home)
    database = platform_server.database
    job, other = (add_job(database, home, "tiny").id for _ in range(2))
    with database.write() as connection:
        add_checkpoint(connection, other, DEFAULT_PROJECT, 1, SHARED, "shared", {})
    yield World(platform_server.server.url, home, database, job)
    database.close()


@dataclass(frozen=True)
class List:
    """One list: what adds a row and which table has it; None: all rows come at once, with `begin`."""

    add: Callable[[World], str] | None
    table: object = None
    begin: Callable[[World, int], str] | None = None


#: By their paths in the schema; what a path names is the world's own.
LISTS = {
    "/v1/files": List(World.add_file, tables.files),
    "/v1/fine_tuning/jobs": List(World.add_job, tables.jobs),
    "/v1/fine_tuning/jobs/{job_id}/events": List(World.add_event, tables.events),
    "/v1/fine_tuning/jobs/{job_id}/checkpoints": List(World.add_checkpoint, tables.job_checkpoints),
    "/v1/fine_tuning/checkpoints/{model}/permissions": List(World.add_permission, tables.permissions),
    "/v1/webhook_endpoints": List(World.add_webhook, tables.webhooks),
    "/v1/chat/completions": List(World.add_completion, tables.completions),
    "/v1/chat/completions/{completion_id}/messages": List(None, begin=World.add_completion),
    "/v1/responses/{response_id}/input_items": List(None, begin=World.add_response),
}


def place(world, path, rows=7):
    """Return a list's path with ids in it, and the ids of the rows that were added."""
    known = LISTS[path]
    filled = path.replace("{job_id}", world.job).replace("{model}", SHARED)
    if known.begin is not None:
        start, _, end = path.replace("{", "}").split("}")
        return f"{start}{known.begin(world, rows)}{end}", []
    return filled, [known.add(world) for _ in range(rows)]


def is_refused(reply, param):
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"} and error["param"] == param and error["message"]
    assert reply.headers["x-should-retry"] == "false"


def listed_paths(world):
    """Return the lists in the server's own schema, with the largest limit and the orders of each."""
    found = {}
    for path, operations in world.get("/openapi.json").json()["paths"].items():
        parameters = {one["name"]: one["schema"] for one in operations.get("get", {}).get("parameters", ())}
        if "limit" in parameters:
            found[path] = parameters["limit"]["maximum"], parameters.get("order", {}).get("enum", [None])
    return found


def test_b19_every_list_is_tried(world):
    paths = world.get("/openapi.json").json()["paths"]
    assert set(listed_paths(world)) == LISTS.keys()
    # What takes a cursor is a list.
    assert {path for path, one in paths.items() if "after" in str(one.get("get", {}).get("parameters"))} == LISTS.keys()


@pytest.mark.parametrize("path", LISTS)
def test_b19_limits(world, path):
    here, _ = place(world, path, rows=3)
    most, _ = listed_paths(world)[path]
    for limit in (-1, 0, most + 1, 10**9, 10**30, "a", "", "1.5", "1e1", "\0", "٣", True):
        is_refused(world.get(here, limit=limit), "limit")
    for limit in (1, most):
        reply = world.get(here, limit=limit)
        assert reply.status_code == 200 and 1 <= len(reply.json()["data"]) <= limit


@pytest.mark.parametrize("path", LISTS)
def test_b19_cursors(world, path):
    here, ids = place(world, path, rows=3)
    for cursor in ("nobody", "", "\0", "%", "' OR 1=1 --", "\U0001f426", "x" * 10_000, "-1", "../../etc/passwd"):
        is_refused(world.get(here, after=cursor), "after")
    table = LISTS[path].table
    if table is None:
        return
    with world.database.write() as connection:
        connection.execute(delete(table).where(table.c.id == ids[1]))
    is_refused(world.get(here, after=ids[1]), "after")
    assert world.get(here, after=ids[0]).status_code == world.get(here, after=ids[2]).status_code == 200


@pytest.mark.parametrize("path", LISTS)
def test_b19_pages_neither_skip_nor_repeat(world, path):
    drawn = random.Random(0)
    table, add = LISTS[path].table, LISTS[path].add
    for order in listed_paths(world)[path][1]:
        here, ids = place(world, path, rows=12)
        query = {"limit": 2} if order is None else {"limit": 2, "order": order}
        lasting = [one["id"] for one in world.get(here, **{**query, "limit": 100}).json()["data"]]
        seen, more = [], True
        while more:
            page = world.get(here, **query, **({"after": seen[-1]} if seen else {})).json()
            seen += [one["id"] for one in page["data"]]
            assert len(page["data"]) == 2 or not page["has_more"]
            assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
            more = page["has_more"]
            if len(ids) > 4:
                # Meanwhile rows come, and go in front of the cursor and behind it.
                add(world)
                gone = drawn.choice([one for one in ids if one != seen[-1]])
                ids.remove(gone)
                lasting.remove(gone)
                with world.database.write() as connection:
                    connection.execute(delete(table).where(table.c.id == gone))
        assert len(seen) == len(set(seen)) and len(ids) in (0, 4, 5)
        places = [seen.index(one) for one in lasting]
        assert places == sorted(places)


#: As they stand in the request line.
ODD = {
    "dots": "%2e%2e",
    "plain dots": "..",
    "a path": "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "10 KB": "x" * 10_240,
    "an emoji": "%F0%9F%90%A6",
    "no UTF-8": "%ff%fe",
    "NUL": "%00",
    "a new line": "x%0d%0aX-Injected:%20yes",
    "SQL": "'%20OR%20'1'='1",
    "a pattern": "%25",
    "a minus": "-1",
    "null": "null",
    "HTML": "%3Cscript%3Ealert(1)%3C/script%3E",
    "encoded twice": "%252e%252e",
    "braces": "%7B%7D",
}
PART = b'--b\r\nContent-Disposition: form-data; name="data"; filename="x"\r\n\r\nx\r\n--b--\r\n'
#: These read a body before they look for what they change, and what they refuse is the body.
BODIES = {
    "/v1/uploads/{upload_id}/parts": ("multipart/form-data; boundary=b", PART),
    "/v1/uploads/{upload_id}/complete": ("application/json", b'{"part_ids": ["part_x"]}'),
    "/v1/fine_tuning/checkpoints/{model}/permissions": ("application/json", b'{"project_ids": ["proj_default"]}'),
    "/v1/chat/completions/{completion_id}": ("application/json", b'{"metadata": {}}'),
}  # fmt: skip


def ask(world, method, path, kind="application/json", body=b"{}"):
    """Send a request line as it is; clients would tidy it up."""
    address = urlsplit(world.url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    connection.putrequest(method, path)
    if method == "POST":
        connection.putheader("content-type", kind)
        connection.putheader("content-length", str(len(body)))
    connection.endheaders(body if method == "POST" else None)
    reply = connection.getresponse()
    content = reply.read()
    connection.close()
    return reply, content


def routes_with_ids(world):
    _, content = ask(world, "GET", "/openapi.json")
    paths = json.loads(content)["paths"]
    return [(method.upper(), path) for path, methods in paths.items() if "{" in path for method in methods]


@pytest.mark.parametrize("kind", ODD)
def test_b21_odd_ids_are_not_found(world, kind):
    routes = routes_with_ids(world)
    assert len(routes) > 20
    for method, path in routes:
        parts = path.split("/")
        for place, part in enumerate(parts):
            if not part.startswith("{"):
                continue
            filled = [
                ODD[kind] if i == place else "x" * 30 if one.startswith("{") else one for i, one in enumerate(parts)
            ]
            reply, content = ask(world, method, "/".join(filled), *BODIES.get(path, ()))
            assert reply.status in (404, 405), (method, path, reply.status, content[:300])
            # A folder up leads to another route, which may not have this method.
            assert reply.status == 404 or "%2f" in ODD[kind] or "script" in ODD[kind], (method, path)
            assert reply.getheader("x-injected") is None and reply.getheader("content-type") == "application/json"
            error = json.loads(content)["error"]
            assert error.keys() == {"message", "type", "param", "code"} and len(error["message"]) < 1_000
            assert "passwd" not in error["message"] or "etc" in ODD[kind]
    assert ask(world, "GET", "/healthz")[0].status == 200


def test_a22_filters_are_literal(world):
    """What would be a condition or a pattern in SQL is a text like any other."""
    asked = {"model": "smollm2-135m", "training_file": world.add_file(), "metadata": {"a'b": "' OR '1'='1"}}
    job = httpx.post(f"{world.url}/v1/fine_tuning/jobs", json=asked, timeout=60).json()["id"]
    stored = world.add_completion()
    for query in ("' OR '1'='1", "%", "_", "'; DROP TABLE jobs; --", "*"):
        assert world.get("/v1/files", purpose=query).json()["data"] == []
        assert world.get("/v1/chat/completions", model=query).json()["data"] == []
        assert world.get("/v1/chat/completions", **{"metadata[a]": query}).json()["data"] == []
        for pair in ({"metadata[a]": query}, {f"metadata[{query}]": "x"}):
            assert world.get("/v1/fine_tuning/jobs", **pair).json()["data"] == []
        permissions = f"/v1/fine_tuning/checkpoints/{SHARED}/permissions"
        assert world.get(permissions, project_id=query).json()["data"] == []
    found = world.get("/v1/fine_tuning/jobs", **{"metadata[a'b]": "' OR '1'='1"}).json()["data"]
    assert [one["id"] for one in found] == [job]
    assert stored in [one["id"] for one in world.get("/v1/chat/completions", order="desc").json()["data"]]


ENDED = "fine_tuning.job.succeeded"
CHAT = {"model": "smollm2-135m", "messages": [{"role": "user", "content": "hello"}]}
WHOLE = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": "smollm2-135m", "prompt": "hello"},
    "/v1/embeddings": {"model": "all-minilm-l6-v2", "input": "hello"},
    "/v1/responses": {"model": "smollm2-135m", "input": "hello"},
    "/v1/uploads": {"bytes": 1, "filename": "x", "mime_type": "text/plain", "purpose": "user_data"},
    "/v1/uploads/{upload_id}/complete": {"part_ids": ["part_x"]},
    "/v1/fine_tuning/jobs": {"model": "smollm2-135m", "training_file": "file-x"},
    "/v1/fine_tuning/checkpoints/{model}/permissions": {"project_ids": [DEFAULT_PROJECT]},
    "/v1/chat/completions/{completion_id}": {"metadata": {}},
    "/v1/webhook_endpoints": {"name": "x", "url": "https://x.example/", "event_types": [ENDED]},
    "/v1/webhook_endpoints/{webhook_endpoint_id}": {"name": "y"},
    "/v1/webhook_endpoints/{webhook_endpoint_id}/rotate_secret": {},
    "/v1/webhook_endpoints/{webhook_endpoint_id}/test": {"event_type": ENDED},
}


def is_unknown(reply, param):
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert (error["code"], error["param"]) == ("unknown_parameter", param)
    assert error["message"] == f"Unknown parameter: '{param}'." and reply.headers["x-should-retry"] == "false"


def in_world(world, path):
    """A path of the schema with ids of things that are there, as far as there are any."""
    known = {
        "job_id": world.job,
        "model": SHARED,
        "completion_id": world.add_completion(),
        "webhook_endpoint_id": world.add_webhook(),
    }
    parts = path.replace("{", "}").split("}")
    return "".join(known.get(part, "x") if number % 2 else part for number, part in enumerate(parts))


def test_item_74_unknown_fields_are_refused_everywhere(world):
    paths = world.get("/openapi.json").json()["paths"]
    bodies = {path: one["post"]["requestBody"]["content"] for path, one in paths.items() if "requestBody" in str(one)}
    assert {path for path, kinds in bodies.items() if "application/json" in kinds} == WHOLE.keys()
    for path, body in WHOLE.items():
        is_unknown(httpx.post(world.url + in_world(world, path), json={**body, "colour": "red"}), "colour")
    begun = httpx.post(f"{world.url}/v1/uploads", json=WHOLE["/v1/uploads"]).json()["id"]
    for path, name in (("/v1/files", "file"), (f"/v1/uploads/{begun}/parts", "data")):
        form = {"purpose": "user_data", "colour": "red"} if name == "file" else {"colour": "red"}
        is_unknown(httpx.post(world.url + path, files={name: ("x", b"x")}, data=form), "colour")
    for path, methods in paths.items():
        if not path.startswith("/v1/"):
            continue
        for method in methods:
            reply = httpx.request(method, world.url + in_world(world, path), params={"colour": "red"})
            is_unknown(reply, "colour")
    is_unknown(world.get("/v1/files", purpos="evals"), "purpos")
    is_unknown(world.get("/v1/files", **{"metadata[a]": "b"}), "metadata[a]")
    assert world.get("/v1/fine_tuning/jobs", **{"metadata[a]": "b"}).json()["data"] == []
    assert world.get("/healthz", probe=1).status_code == 200
