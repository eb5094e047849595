"""A server that is killed, whose database is busy or goes away, and that starts with much on its hands.

Each test starts servers, which takes seconds. So on PostgreSQL they run with `--soak`, but for F11, which is about it;
what the record promises is tested on both databases in `tests/record`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import psutil
import psycopg
import pytest
from sqlalchemy import insert, select

from server_process import running_server
from tunesmith.record.access import DEFAULT_PROJECT, ORGANIZATION
from tunesmith.record.database import Database
from tunesmith.record.home import Home
from tunesmith.record.store import Store
from tunesmith.record.tables import blobs, events, files, idempotency, jobs, parts, projects
from tunesmith.record.workers import show_worker

pytestmark = pytest.mark.slow

MODEL = "smollm2-135m"
ROW = {"messages": [{"role": "user", "content": "Name a bird"}, {"role": "assistant", "content": "Wren"}]}
CONTENT = (json.dumps(ROW) + "\n").encode() * 12_000
READY_SECONDS = 5.0


@pytest.fixture
def start(home, database_url, monkeypatch, tmp_path, request):
    """Starts a server on the test's own record."""
    if database_url.startswith("postgresql") and not request.config.getoption("--soak"):
        pytest.skip("on PostgreSQL with --soak")
    monkeypatch.setenv("TUNESMITH_DATABASE_URL", database_url)
    return lambda **settings: running_server(tmp_path / "server", home.root, **settings)


def client_of(server, **more):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", **{"max_retries": 0, "timeout": 60, **more})


def post_file(client, key):
    return client.files.create(
        file=("rows.jsonl", CONTENT), purpose="fine-tune", extra_headers={"Idempotency-Key": f"file-{key}"}
    )


def post_job(client, key, file):
    return client.fine_tuning.jobs.create(
        model=MODEL, training_file=file, suffix=f"k{key}", extra_headers={"Idempotency-Key": f"job-{key}"}
    )


def heard(ask, *arguments):
    """Return the answer's id, None where none came."""
    try:
        return ask(*arguments).id
    except openai.APIError:
        return None


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.soak)])
def test_f02_a_server_killed_while_it_creates_makes_one_object_of_two_requests(start, database_url, kills):
    seed = 20
    chance = random.Random(seed)
    first = None
    asked: dict[int, list[str | None]] = {}
    for number in range(kills + 1):
        with start() as server, client_of(server) as client:
            if first is None:
                first = post_file(client, "first").id
            # What was asked before the kill is asked again, in the same words.
            for key in asked:
                file, job = post_file(client, key).id, post_job(client, key, first).id
                assert asked[key][0] in (None, file) and asked[key][1] in (None, job)
                asked[key] = [file, job]
            if number == kills:
                break
            with ThreadPoolExecutor(2) as threads:
                sending = [
                    threads.submit(heard, post_file, client, number),
                    threads.submit(heard, post_job, client, number, first),
                ]
                time.sleep(chance.uniform(0.0, 0.12))
                server.process.kill()
                server.process.wait()
                asked[number] = [one.result() for one in sending]
    database = Database(database_url)
    with database.read() as connection:
        made = connection.scalars(select(files.c.id)).all()
        suffixes = connection.scalars(select(jobs.c.suffix)).all()
        claims = connection.scalars(select(idempotency.c.state)).all()
    database.close()
    assert sorted(made) == sorted([first, *(file for file, _ in asked.values())]), f"seed {seed}"
    assert sorted(suffixes) == sorted(f"k{key}" for key in asked), f"seed {seed}"
    assert set(claims) == {"finished"}


#: The process dies where a request was carried out and its answer isn't kept yet.
DIES_BEFORE_THE_ANSWER = """
import os
from tunesmith.record.idempotency import Idempotency
Idempotency.finish = lambda *_: os._exit(9)
"""


def test_f02_an_upload_completed_by_a_server_that_died_before_its_answer_is_completed_once(start):
    key = {"Idempotency-Key": "complete"}
    with start(prelude=DIES_BEFORE_THE_ANSWER) as server, client_of(server) as client:
        begun = client.uploads.create(
            bytes=len(CONTENT), filename="rows.jsonl", mime_type="text/jsonl", purpose="fine-tune"
        )
        parts = [client.uploads.parts.create(begun.id, data=CONTENT).id]
        with pytest.raises(openai.APIConnectionError):
            client.uploads.complete(begun.id, part_ids=parts, extra_headers=key)
        assert server.process.wait() == 9
    with start() as server, client_of(server) as client:
        made = [one.id for one in client.files.list()]
        for _ in range(2):
            done = client.uploads.complete(begun.id, part_ids=parts, extra_headers=key)
            assert done.status == "completed" and [done.file.id] == made
        assert client.files.content(done.file.id).content == CONTENT
        for other in ({}, {"Idempotency-Key": "another"}):
            with pytest.raises(openai.BadRequestError, match="is completed"):
                client.uploads.complete(begun.id, part_ids=parts, extra_headers=other)


def test_f02_a_part_added_by_a_server_that_died_before_its_answer_is_added_once(start, database_url):
    key = {"Idempotency-Key": "part"}
    announced = {"filename": "rows.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune"}
    with start(prelude=DIES_BEFORE_THE_ANSWER) as server, client_of(server) as client:
        begun = client.uploads.create(bytes=len(CONTENT), **announced)
        with pytest.raises(openai.APIConnectionError):
            client.uploads.parts.create(begun.id, data=CONTENT, extra_headers=key)
        assert server.process.wait() == 9
    with start() as server, client_of(server) as client:
        database = Database(database_url)
        with database.read() as connection:
            (kept,) = connection.execute(select(parts.c.id)).scalars()
        database.close()
        assert {client.uploads.parts.create(begun.id, data=CONTENT, extra_headers=key).id for _ in range(2)} == {kept}
        assert client.uploads.parts.create(begun.id, data=CONTENT).id != kept
        done = client.uploads.complete(begun.id, part_ids=[kept])
        assert client.files.content(done.file.id).content == CONTENT


class Held:
    """The write lock, held by a stranger."""

    def __init__(self, url):
        if url.startswith("sqlite"):
            self.connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
            self.connection.execute("BEGIN IMMEDIATE")
        else:
            self.connection = psycopg.connect(url)
            self.connection.execute("LOCK TABLE blobs IN EXCLUSIVE MODE")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.rollback()
        self.connection.close()


def test_f10_a_locked_record_is_waited_for_and_then_refused_and_no_worker_dies(start, database_url):
    with start(workers=1) as server, client_of(server) as client, ThreadPoolExecutor(1) as threads:
        wait_ready(server.url)
        worker = worker_of(server)
        began = time.monotonic()
        with Held(database_url):
            sending = threads.submit(post_file, client, "short")
            time.sleep(3)
            assert not sending.done()
        assert sending.result().id and time.monotonic() - began >= 3
        with Held(database_url):
            reply = httpx.post(
                f"{server.url}/v1/files",
                files={"file": ("rows.jsonl", b"{}\n" * 10)},
                data={"purpose": "user_data"},
                timeout=60,
            )
            # What doesn't write goes on.
            assert len(client.files.list().data) == 1
            assert httpx.get(f"{server.url}/healthz").status_code == 200
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "busy")
        assert reply.headers["retry-after"] == "2" and "x-should-retry" not in reply.headers
        assert post_file(client, "after").id
        assert worker_of(server) == worker
        assert httpx.get(f"{server.url}/readyz").status_code == 200


def worker_of(server):
    found = [one.pid for one in psutil.Process(server.process.pid).children() if "worker" in one.cmdline()]
    assert len(found) == 1
    return found[0]


def wait_ready(url, seconds=240.0):
    give_up = time.monotonic() + seconds
    while httpx.get(f"{url}/readyz").status_code != 200:
        assert time.monotonic() < give_up, httpx.get(f"{url}/readyz").text
        time.sleep(0.1)


def test_f11_a_database_that_drops_connections_and_restarts_loses_and_doubles_nothing(
    home, postgresql_cluster, monkeypatch, tmp_path
):
    url = postgresql_cluster.create()
    monkeypatch.setenv("TUNESMITH_DATABASE_URL", url)
    made: dict[int, str] = {}
    statuses: set[int] = set()
    noting = httpx.Client(event_hooks={"response": [lambda reply: statuses.add(reply.status_code)]}, timeout=60)
    has_ended = threading.Event()

    def drop():
        while not has_ended.wait(0.05):
            postgresql_cluster.terminate_backends()

    with (
        running_server(tmp_path / "server", home.root) as server,
        client_of(server, max_retries=8, http_client=noting) as client,
    ):
        dropping = threading.Thread(target=drop)
        dropping.start()
        try:
            for number in range(25):
                made[number] = post_small(client, number)
        finally:
            has_ended.set()
            dropping.join()
        with ThreadPoolExecutor(1) as threads:
            sending = threads.submit(lambda: [post_small(client, number) for number in range(25, 60)])
            for at_once in (False, True):
                time.sleep(0.3)
                postgresql_cluster.stop(at_once=at_once)
                refused = httpx.get(f"{server.url}/readyz", timeout=30)
                assert refused.status_code == 503 and "database" in refused.json()["missing"]
                assert httpx.get(f"{server.url}/healthz").status_code == 200
                postgresql_cluster.start()
            made |= dict(enumerate(sending.result(), start=25))
        # Callers are told to come again, if anything: it is no fault of the server.
        assert statuses <= {200, 503}
        listed = [file.id for file in client.files.list()]
        assert sorted(listed) == sorted(made.values()) and len(set(listed)) == 60
        for number, file in made.items():
            assert client.files.content(file).read() == small(number)
        assert server.stop() == 0
    postgresql_cluster.drop(url)


def small(number):
    return json.dumps({"number": number}).encode()


def post_small(client, number):
    headers = {"Idempotency-Key": f"small-{number}"}
    return client.files.create(file=(f"{number}.json", small(number)), purpose="user_data", extra_headers=headers).id


#: Notes when a server has loaded its program and begins to start.
NOTE_BEGINNING = """
import time, tunesmith.rest.server
open(BEGAN, "w").write(repr(time.monotonic()))
"""


@pytest.mark.parametrize("with_program", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_l16_a_server_with_100_000_rows_and_1_000_stray_files_is_ready_in_5_seconds(
    start, home, database_url, tmp_path, with_program
):
    """What depends on the rows, in every run; with the time that Python takes to load the program, with `--soak`.

    Beside other tests, loading alone may take longer than that.
    """
    fill(home, database_url)
    began = time.monotonic()
    note = tmp_path / "began"
    show(database_url, "elsewhere.boot.1.2.x")
    with start(prelude=f"BEGAN = {str(note)!r}" + NOTE_BEGINNING) as server:
        wait_ready(server.url)
        ready_after = time.monotonic() - (began if with_program else float(note.read_text()))
        with client_of(server) as client:
            assert client.files.list(limit=1).data and client.fine_tuning.jobs.list(limit=1).data
            # Stray files go meanwhile; what a row names stays, however old it is.
            give_up = time.monotonic() + 60
            while len(list((home.root / "files").glob("??/*"))) > 1:
                assert time.monotonic() < give_up
                time.sleep(0.1)
            assert client.files.content("file-0").read() == b"content"
        server.stop(signal.SIGKILL)
    assert ready_after < READY_SECONDS


def show(url: str, worker: str) -> None:
    """Let a worker be seen; a real one would take as long to load as the server."""
    database = Database(url)
    with database.write() as connection:
        show_worker(connection, worker)
    database.close()


def fill(home: Home, url: str) -> None:
    """Make a record of 100,000 rows, and content that no row names."""
    store, database = Store.from_environment(home), Database(url)
    database.migrate()
    blob = store.add(b"content")
    for number in range(1000):
        store.add(f"stray {number}".encode())
    days_ago = time.time() - 3 * 24 * 3600
    for path in (home.root / "files").glob("??/*"):
        os.utime(path, (days_ago, days_ago))
    with database.write() as connection:
        connection.execute(
            insert(projects).values(id=DEFAULT_PROJECT, created_at=1, name="default", organization_id=ORGANIZATION)
        )
        connection.execute(insert(blobs).values(sha256=blob.sha256, bytes=blob.bytes, created_at=1))
        one_file = {"project_id": DEFAULT_PROJECT, "filename": "x", "purpose": "user_data", "bytes": 7,
                    "sha256": blob.sha256, "status": "processed", "created_at": 1}  # fmt: skip
        connection.execute(insert(files), [{**one_file, "id": f"file-{n}"} for n in range(30_000)])
        one_job = {"project_id": DEFAULT_PROJECT, "state": "succeeded", "model": "m", "base": "b", "seed": 1,
                   "method": {"type": "supervised"}, "spec": {}, "training_file": "x",
                   "training_sha256": blob.sha256, "created_at": 1}  # fmt: skip
        connection.execute(insert(jobs), [{**one_job, "id": f"ftjob-{n}"} for n in range(10_000)])
        one_event = {"level": "info", "type": "message", "message": "m", "created_at": 1}
        told = [{**one_event, "id": f"ftevent-{n}", "job_id": f"ftjob-{n % 10_000}"} for n in range(60_000)]
        connection.execute(insert(events), told)
    database.close()
