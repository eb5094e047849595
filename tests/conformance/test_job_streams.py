"""Events of jobs as streams: what many who follow see (L07), and how a stream ends.

On SQLite alone, without a worker: the events are written here, as a worker's process would write them.
"""

from __future__ import annotations

import json
import threading
import time

import httpx
import openai
import pytest
from openai.types.fine_tuning import FineTuningJobEvent

from job_api import chat, events, upload
from server_process import running_server
from tunesmith.record.database import Database
from tunesmith.record.job_events import NewEvent, add_events

PATIENCE_SECONDS = 60
MODEL = "smollm2-135m"


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.delenv("TUNESMITH_DATABASE_URL", raising=False)
    with running_server(tmp_path / "log", tmp_path / "home") as running:
        yield running


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def database(tmp_path, server):
    opened = Database(f"sqlite:///{tmp_path / 'home' / 'record.db'}")
    yield opened
    opened.close()


@pytest.fixture
def job(client):
    return client.fine_tuning.jobs.create(model=MODEL, training_file=upload(client, [chat("q", "a")] * 10)).id


def tell(database, job, *texts):
    with database.write() as connection:
        add_events(connection, job, [NewEvent(text) for text in texts])


def followed(server, job, *, after=None, most=None):
    """The events of a stream until its end, or until so many were seen and the connection is given up."""
    headers = {"last-event-id": after} if after else {}
    seen = []
    with httpx.stream(
        "GET",
        f"{server.url}/v1/fine_tuning/jobs/{job}/events",
        params={"stream": "true"},
        headers=headers,
        timeout=PATIENCE_SECONDS,
    ) as reply:
        assert reply.status_code == 200 and reply.headers["content-type"].startswith("text/event-stream")
        for line in reply.iter_lines():
            if line.startswith("id: "):
                seen.append(line.removeprefix("id: "))
            elif line.startswith("data: ") and line != "data: [DONE]":
                assert json.loads(line.removeprefix("data: "))["id"] == seen[-1]
            if len(seen) == most:
                return seen
    assert line == "" or line == "data: [DONE]"
    return seen


def test_l07_who_follows_and_reconnects_sees_each_event_once_and_in_order(server, client, database, job):
    seen = [[] for _ in range(20)]

    def follow(number):
        # Everybody leaves once in the middle and comes back.
        seen[number] += followed(server, job, most=10 + number)
        seen[number] += followed(server, job, after=seen[number][-1])

    threads = [threading.Thread(target=follow, args=(number,)) for number in range(len(seen))]
    for thread in threads:
        thread.start()
    for number in range(25):
        tell(database, job, f"a{number}", f"b{number}")
        time.sleep(0.02)
    client.fine_tuning.jobs.cancel(job)
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    wanted = [event.id for event in events(client, job)]
    assert len(wanted) == 53
    assert all(one == wanted for one in seen)


def test_the_official_client_follows_a_job_that_works(client, database, job):
    stream = client.get(
        f"/fine_tuning/jobs/{job}/events",
        cast_to=FineTuningJobEvent,
        stream=True,
        stream_cls=openai.Stream[FineTuningJobEvent],
        options={"params": {"stream": True}},
    )
    told = []
    for event in stream:
        told.append(event.message)
        if len(told) == 2:
            began = time.monotonic()
            tell(database, job, "something new")
        if event.message == "something new":
            assert time.monotonic() - began < 10  # half a second, where nothing else runs
            client.fine_tuning.jobs.cancel(job)
    assert told[0] == f"Created fine-tuning job: {job}"
    assert told[2:] == ["something new", "The job has been cancelled"]
    assert told == [event.message for event in events(client, job)]


def test_what_cannot_be_followed_is_refused(server, client, job):
    def ask(job, **query):
        reply = httpx.get(f"{server.url}/v1/fine_tuning/jobs/{job}/events", params={"stream": True, **query})
        return reply.status_code, reply.json()["error"]["code"], reply.json()["error"]["param"]

    assert ask("ftjob-" + "a" * 24) == (404, "fine_tune_not_found", "fine_tune_id")
    assert ask(job, after="ftevent-nothing") == (400, "invalid_cursor", "after")
    assert ask(job, limit=5) == (400, "invalid_value", "limit")


def test_streams_end_with_a_word_when_the_server_stops(server, client, job):
    with httpx.stream(
        "GET", f"{server.url}/v1/fine_tuning/jobs/{job}/events?stream=true", timeout=PATIENCE_SECONDS
    ) as reply:
        lines = reply.iter_lines()
        assert next(lines).startswith("id: ftevent-")
        server.process.terminate()
        rest = list(lines)
    assert json.loads([line for line in rest if line.startswith("data: ")][-1][6:])["error"]["code"] == "stopping"
    assert server.process.wait(PATIENCE_SECONDS) == 0
