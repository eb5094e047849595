"""What runs a platform: readiness in words, metrics without endless labels, logs without secrets, webhooks."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from job_api import ROWS, lines, upload
from server_process import running_server
from tunesmith.record.access import DEFAULT_PROJECT, Access
from tunesmith.record.database import Database
from tunesmith.record.webhooks import Webhooks
from tunesmith.record.workers import show_worker
from webhook_receiver import receiving

PROMPT = "the canary sings of Lisbon"
MODEL = "smollm2-135m"


def metrics_of(url, **headers):
    reply = httpx.get(f"{url}/metrics", headers=headers)
    assert reply.status_code == 200 and reply.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(reply.text)
        for sample in family.samples
    }


def value(found, name, **labels):
    return found.get((name, tuple(sorted(labels.items()))), 0)


def test_readiness_says_what_is_missing_and_passes_once_a_worker_is_seen(platform_server):
    url = platform_server.server.url
    refusal = httpx.get(f"{url}/readyz")
    assert refusal.status_code == 503 and refusal.headers["retry-after"] == "2"
    assert set(refusal.json()["error"]) == {"message", "type", "param", "code"}
    assert refusal.json()["missing"].keys() == {"workers"}
    assert "No worker is there" in refusal.json()["error"]["message"]
    assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}
    with platform_server.database.write() as connection:
        show_worker(connection, "elsewhere.boot.1.2.x")
    time.sleep(1.1)
    assert httpx.get(f"{url}/readyz").json() == {"status": "ready"}
    # A store that can't be written is told, without its path.
    folder = platform_server.home / "files"
    (platform_server.home / "files").rename(platform_server.home / "away")
    folder.write_text("no folder")
    time.sleep(1.1)
    try:
        refusal = httpx.get(f"{url}/readyz")
        assert refusal.status_code == 503 and refusal.json()["missing"].keys() == {"store"}
        assert str(platform_server.home) not in refusal.text
    finally:
        folder.unlink()
        (platform_server.home / "away").rename(folder)


def test_metrics_count_requests_by_route_and_status(platform_server, client):
    url = platform_server.server.url
    before = metrics_of(url)
    for _ in range(3):
        client.files.list()
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve("file-nobody")
    job = client.fine_tuning.jobs.create(model=MODEL, training_file=upload(client))
    for path in ("/v1/nothing", "/nothing/else", "/x" * 50):
        httpx.get(url + path)
    httpx.request("BREW", f"{url}/v1/files")
    # The loop's lag is measured now and then, and who has an answer may still be counted among those who wait.
    give_up = time.monotonic() + 60
    while True:
        after = metrics_of(url)
        is_idle = value(after, "tunesmith_requests_in_flight") == 1
        if is_idle and value(after, "tunesmith_event_loop_lag_seconds_count") > 0:
            break
        assert time.monotonic() < give_up, after
        time.sleep(0.05)

    def grown(name, **labels):
        return value(after, name, **labels) - value(before, name, **labels)

    assert grown("tunesmith_requests_total", method="GET", route="/v1/files", status="200") == 3
    assert grown("tunesmith_requests_total", method="GET", route="/v1/files/{file_id}", status="404") == 1
    assert grown("tunesmith_requests_total", method="POST", route="/v1/fine_tuning/jobs", status="200") == 1
    assert grown("tunesmith_requests_total", method="GET", route="none", status="404") == 3
    assert grown("tunesmith_request_seconds_count", route="/v1/files") >= 3
    assert value(after, "tunesmith_record_up") == 1
    assert grown("tunesmith_jobs", state="validating_files") == 1
    assert value(after, "process_resident_memory_bytes") > 0
    assert {"tunesmith_loaded_models", "tunesmith_answers_unfinished", "tunesmith_workers"} <= {n for n, _ in after}
    client.fine_tuning.jobs.cancel(job.id)
    assert value(metrics_of(url), "tunesmith_jobs", state="cancelled") >= 1


def test_no_label_grows_with_what_callers_send(platform_server):
    url = platform_server.server.url

    def ask(numbers):
        with httpx.Client(base_url=url) as client:
            for number in numbers:
                client.get(f"/v1/files/file-{number}")
                client.get(f"/v1/models/model-{number}")
                client.get(f"/unknown/{number}")
                client.request(f"M{number}", "/v1/files")
                client.post("/v1/chat/completions", json={"model": f"m{number}", "messages": []})
        return metrics_of(url).keys()

    ask(range(2))
    first = ask(range(2, 4))
    assert ask(range(4, 40)) == first


def test_a_job_that_ends_is_told_to_its_webhook_and_once_more_if_the_endpoint_fails(platform_server, client):
    database = platform_server.database
    with receiving() as receiver:
        receiver.statuses = [500, 200]
        webhook = Webhooks(database).add(DEFAULT_PROJECT, "mine", receiver.url + "/hook", (), allows_private=True)
        job = client.fine_tuning.jobs.create(model=MODEL, training_file=upload(client))
        client.fine_tuning.jobs.cancel(job.id)
        receiver.wait(2)
    events = [
        openai.OpenAI(api_key="x", webhook_secret=webhook.secret).webhooks.unwrap(body, headers)
        for _, headers, body in receiver.got
    ]
    assert {(event.type, event.data.id) for event in events} == {("fine_tuning.job.cancelled", job.id)}
    assert (
        len({event.id for event in events}) == 1 and len({headers["webhook-id"] for _, headers, _ in receiver.got}) == 1
    )
    give_up = time.monotonic() + 60
    while Webhooks(database).counts()[webhook.id] != {"delivered": 1}:
        assert time.monotonic() < give_up
        time.sleep(0.05)
    Webhooks(database).remove("mine")
    database.close()


class CommandLine:
    """`tunesmith` as its users start it."""

    def __init__(self, home):
        self.environment = {**os.environ, "TUNESMITH_HOME": str(home.root), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}

    def __call__(self, *arguments, code=0):
        command = [sys.executable, "-m", "tunesmith", *arguments, "--json"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)


def test_webhooks_are_kept_by_the_command(home, monkeypatch):
    monkeypatch.delenv("TUNESMITH_DATABASE_URL", raising=False)
    command = CommandLine(home)
    with receiving() as receiver:
        refusal = command("webhooks", "add", "mine", receiver.url.replace("http", "https"), code=2)
        assert refusal["error"]["code"] == "private_address"
        made = command("webhooks", "add", "mine", receiver.url, "--allow-private", "--event", "fine_tuning.job.failed")
        assert made["secret"].startswith("whsec_") and made["event_types"] == ["fine_tuning.job.failed"]
        assert command("webhooks", "test", "mine")["status"] == 200
        ((_, headers, body),) = receiver.got
        event = openai.OpenAI(api_key="x").webhooks.unwrap(body, headers, secret=made["secret"])
        assert (event.type, event.data.id) == ("fine_tuning.job.failed", "ftjob-test")
        receiver.statuses = [500]
        assert command("webhooks", "test", made["id"], code=3)["error"]["code"] == "webhook_failed"
    (listed,) = command("webhooks", "list")["webhooks"]
    assert listed["name"] == "mine" and "secret" not in listed
    assert command("webhooks", "remove", "mine")["id"] == made["id"]
    assert command("webhooks", "list") == {"webhooks": []}


def test_backup_and_restore_by_the_command(home, tmp_path, monkeypatch):
    monkeypatch.delenv("TUNESMITH_DATABASE_URL", raising=False)
    command = CommandLine(home)
    key = command("keys", "create", "mine")
    told = command("backup", str(tmp_path / "night.tar"))
    assert told["files"] == {"record.db": 1} and told["missing"] == []
    assert command("backup", str(tmp_path / "night.tar"), code=2)["error"]["code"] == "already_exists"
    assert command("restore", str(tmp_path / "night.tar"), code=2)["error"]["code"] == "not_empty"
    command.environment["TUNESMITH_HOME"] = str(tmp_path / "elsewhere")
    command("restore", str(tmp_path / "night.tar"))
    assert [one["id"] for one in command("keys", "list")["keys"]] == [key["id"]]


OWN_KEY = "a-key-of-the-server's-own"


@contextlib.contextmanager
def logging_server(home, folder, log):
    """`tunesmith serve --log-format json` as a user starts it; yields its address."""
    arguments = ["serve", "--port", "0", "--log-format", "json", "--workers", "1", "--model", str(folder)]
    with log.open("w") as errors:
        server = subprocess.Popen(
            [sys.executable, "-m", "tunesmith", *arguments],
            env={**os.environ, "TUNESMITH_API_KEY": OWN_KEY, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
            stderr=errors,
            stdout=subprocess.PIPE,
            text=True,
        )
    try:
        found = (re.search(r"http://[\d.]+:\d+", line) for line in server.stdout)
        yield next(one[0] for one in found if one)
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(120) == 0
        server.stdout.close()


@pytest.fixture
def secret(home, monkeypatch):
    """A key of the record in an empty home."""
    url = f"sqlite:///{home.root / 'record.db'}"
    monkeypatch.setenv("TUNESMITH_DATABASE_URL", url)
    home.check_writable()
    database = Database(url)
    database.migrate()
    access = Access(database)
    access.ensure_default_project()
    yield access.create_key("mine", DEFAULT_PROJECT)[1]
    database.close()


def test_a25_json_logs_bear_the_request_and_neither_keys_nor_prompts(tmp_path, tiny_folder, home, secret):
    log = tmp_path / "log"
    with logging_server(home, tiny_folder("smollm2"), log) as base:
        client = openai.OpenAI(base_url=f"{base}/v1", api_key=secret, max_retries=0)
        asked = {"model": tiny_folder("smollm2").name, "messages": [{"role": "user", "content": PROMPT}]}
        answered = client.chat.completions.with_raw_response.create(**asked, max_tokens=2)
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(**asked, temperature=3)
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="sk-wrong" + "x" * 40).models.list()
        for path in (f"/v1/files/{secret}", f"/{secret}?key={secret}", "/v1/files/file-%0a%22injected%22"):
            httpx.get(base + path, headers={"authorization": f"Bearer {OWN_KEY}"})
        client.files.create(file=("rows.jsonl", lines(ROWS)), purpose="fine-tune")
        # The one server of these tests that has answered with a model.
        counted = metrics_of(base, authorization=f"Bearer {OWN_KEY}")
    usage = answered.parse().usage
    assert value(counted, "tunesmith_tokens_total", kind="prompt") == usage.prompt_tokens > 0
    assert value(counted, "tunesmith_tokens_total", kind="answer") == usage.completion_tokens == 2
    assert value(counted, "tunesmith_loaded_models") == 1 and value(counted, "tunesmith_answers_unfinished") == 0
    text = log.read_text()
    told = [json.loads(line) for line in text.splitlines()]
    assert len(told) > 8 and all({"time", "level", "logger", "message"} <= one.keys() for one in told)
    requests = [one for one in told if "route" in one]
    assert all(one["request_id"].startswith("req_") for one in requests)
    (chat,) = [one for one in requests if one.get("request_id") == answered.headers["x-request-id"]]
    assert (chat["method"], chat["route"], chat["status"]) == ("POST", "/v1/chat/completions", 200)
    assert chat["key_id"].startswith("key_") and chat["project_id"] == DEFAULT_PROJECT and chat["seconds"] > 0
    assert [one for one in requests if one["status"] == 401] and [one for one in requests if one["status"] == 400]
    for hidden in (secret, OWN_KEY, PROMPT, "canary", "Lisbon", "sk-wrong", "say 3", "injected", str(home.root)):
        assert hidden not in text, hidden


def test_with_keys_metrics_need_one_and_probes_do_not(home, tmp_path, monkeypatch):
    monkeypatch.delenv("TUNESMITH_DATABASE_URL", raising=False)
    with running_server(tmp_path / "server", home.root, api_keys=["k"]) as server:
        assert httpx.get(f"{server.url}/metrics").status_code == 401
        assert metrics_of(server.url, authorization="Bearer k")
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        assert httpx.get(f"{server.url}/readyz").status_code == 503
