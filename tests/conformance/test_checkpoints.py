"""Checkpoints over HTTP, from jobs that a real worker trains; examples/openai_quickstart.py starts one of them.

Training takes its time, so this runs on SQLite alone; what the record does with checkpoints and models is tested on
both databases in `test_models.py`, `test_permissions.py` and `tests/runs/test_model_removal.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import openai
import pytest

from job_workers import PATIENCE_SECONDS, ROWS
from model_server import ALIAS, ask, names, refused
from server_process import running_server
from tiny_models import save_tiny_model

EXAMPLE = Path(__file__).parents[2] / "examples" / "openai_quickstart.py"
ROWS_PER_EPOCH, BATCH = 20, 5
STEPS_PER_EPOCH = ROWS_PER_EPOCH // BATCH
CONTENT = "".join(json.dumps(row) + "\n" for row in ROWS[:ROWS_PER_EPOCH]).encode()
#: Quick to train, and nothing but the weights is looked at.
QUICK = {"adapter": {"rank": 4}, "evaluation": {"forgetting_rows": 0}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the server keeps everything."""
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def client(folder):
    """A client of a server with one worker and a tiny base."""
    base = save_tiny_model("smollm2", folder / "tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TUNESMITH_DATABASE_URL", raising=False)
        aliases = [f"{ALIAS}={base}"]
        settings = {"models": [str(base)], "aliases": aliases, "dtype": "float32", "workers": 1}
        with (
            running_server(folder / "log", folder / "home", **settings) as server,
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
        ):
            yield client
            server.stop()


@pytest.fixture(scope="module")
def told(client):
    """What the example printed, which had a job of three epochs done."""
    ended = subprocess.run(
        [sys.executable, str(EXAMPLE)],
        env={**os.environ, "OPENAI_BASE_URL": str(client.base_url), "OPENAI_API_KEY": "none"},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_SECONDS,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout.splitlines()


@pytest.fixture(scope="module")
def jobs(client, told):
    """Jobs of three and of five epochs that have succeeded, by their epochs."""
    (three,) = client.fine_tuning.jobs.list().data
    file = client.files.create(file=("rows.jsonl", CONTENT), purpose="fine-tune")
    method = {"hyperparameters": {"n_epochs": 5, "batch_size": BATCH}}
    five = client.fine_tuning.jobs.create(
        model=ALIAS,
        training_file=file.id,
        suffix="five epochs",
        seed=7,
        method={"type": "supervised", "supervised": method},
        extra_body={"tunesmith": QUICK},
    )
    return {3: three, 5: succeeded(client, five)}


def over(client, job):
    give_up = time.monotonic() + PATIENCE_SECONDS
    while job.status not in ("succeeded", "failed", "cancelled"):
        assert time.monotonic() < give_up, job
        time.sleep(0.1)
        job = client.fine_tuning.jobs.retrieve(job.id)
    return job


def succeeded(client, job):
    job = over(client, job)
    assert job.status == "succeeded", job.error
    return job


def checkpoints(client, job, **page):
    return client.fine_tuning.jobs.checkpoints.list(job.id, **page)


def test_the_quickstart_runs_as_it_is(told):
    steps = [int(found[1]) for line in told if (found := re.match(r"  Step (\d+)/60: ", line))]
    assert steps == list(range(1, 61)) and "  The job has successfully completed" in told
    assert [line.split(":")[0] for line in told if line.startswith("checkpoint")] == [
        f"checkpoint at step {step}" for step in (20, 40, 60)
    ]
    asked = [line.split()[1] for line in told if re.fullmatch(r" *\d+  \S+", line)]
    assert asked[0] == ALIAS and len(asked) == 4
    assert asked[1].endswith(":ckpt-step-20") and asked[2].endswith(":ckpt-step-40")
    assert "tiny answers:" in told and f"{asked[3]} answers:" in told
    assert told[-1].startswith("step_metrics.csv has 60 steps: step,train_loss,")


def test_item_41_a_job_of_three_epochs_has_two_checkpoints_and_its_result(client, jobs):
    job = jobs[3]
    found = list(checkpoints(client, job))
    models = [one.fine_tuned_model_checkpoint for one in found]
    assert [one.step_number for one in found] == [60, 40, 20]
    form = r"ft:tiny:local:bookings:([0-9a-f]{8})"
    assert models[0] == job.fine_tuned_model and re.fullmatch(form, models[0])
    for one in found[1:]:
        assert re.fullmatch(rf"{form}:ckpt-step-{one.step_number}", one.fine_tuned_model_checkpoint)
    assert len({model.split(":")[4] for model in models}) == 3
    answers = []
    for model in models:
        assert model in names(client)
        answer = ask(client, model, temperature=0, logprobs=True)
        assert answer.model == model and answer.usage.completion_tokens > 0
        answers.append(answer.choices[0].logprobs.content[0].logprob)
    assert len(set(answers)) == 3, "each has weights of its own"


def test_item_42_a_job_of_five_epochs_keeps_three(client, jobs):
    found = list(checkpoints(client, jobs[5]))
    assert [one.step_number for one in found] == [n * STEPS_PER_EPOCH for n in (5, 4, 3)]
    kept = {one.fine_tuned_model_checkpoint for one in found}
    assert {name for name in names(client) if ":five-epochs:" in name} == kept
    events = client.fine_tuning.jobs.list_events(jobs[5].id, limit=100)
    told = [event.message for event in events if event.message.startswith("Checkpoint created")]
    assert told == [
        f"Checkpoint created at step {one.step_number} with Snapshot ID: {one.fine_tuned_model_checkpoint}"
        for one in found[1:]
    ]


def test_item_43_the_list_of_checkpoints_is_a_page(client, jobs):
    page = checkpoints(client, jobs[5], limit=2)
    assert page.object == "list" and page.has_more and len(page.data) == 2
    assert (page.first_id, page.last_id) == (page.data[0].id, page.data[1].id)
    rest = checkpoints(client, jobs[5], limit=2, after=page.last_id)
    assert len(rest.data) == 1 and not rest.has_more
    for one in (*page.data, *rest.data):
        assert one.object == "fine_tuning.job.checkpoint" and one.id.startswith("ftckpt_")
        assert one.fine_tuning_job_id == jobs[5].id and abs(one.created_at - time.time()) < 3600
        assert one.metrics.step == one.step_number and one.metrics.train_loss > 0
        assert "valid_loss" not in one.metrics.model_fields_set
    assert refused(lambda: checkpoints(client, jobs[5], after="ftckpt_nothing")).code == "invalid_cursor"
    missing = refused(lambda: client.fine_tuning.jobs.checkpoints.list("ftjob-" + "0" * 24))
    assert (missing.status_code, missing.code) == (404, "fine_tune_not_found")
    empty = httpx.get(f"{client.base_url}fine_tuning/jobs/{jobs[5].id}/checkpoints?limit=0")
    assert (empty.status_code, empty.json()["error"]["code"]) == (400, "integer_below_min_value")


def test_the_answer_says_which_base_ran(client, jobs):
    for job in jobs.values():
        assert job.model == ALIAS and job.tunesmith["base"] == "tiny"
        assert job.fine_tuned_model.startswith("ft:tiny:")
    assert ask(client, ALIAS).model == "tiny"


def test_item_35_the_result_goes_and_its_checkpoints_stay(client, jobs):
    job = jobs[3]
    others = [one.fine_tuned_model_checkpoint for one in checkpoints(client, job)][1:]
    assert client.models.delete(job.fine_tuned_model).deleted
    for call in (client.models.delete, client.models.retrieve, lambda model: ask(client, model)):
        assert refused(call, job.fine_tuned_model).status_code == 404
    assert [one.fine_tuned_model_checkpoint for one in checkpoints(client, job)] == others
    assert ask(client, others[0]).model == others[0]
    assert client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model == job.fine_tuned_model


def test_a28_a_second_upload_changes_nothing_and_content_is_hashed_before_use(client, folder):
    rows = CONTENT.replace(b"say", b"tell")
    first, second = (client.files.create(file=("rows.jsonl", rows), purpose="fine-tune") for _ in range(2))
    assert first.id != second.id
    stored = folder / "home" / "files" / (digest := hashlib.sha256(rows).hexdigest())[:2] / digest
    stored.write_bytes(rows.replace(b"tell 0", b"yell 0"))
    job = over(client, client.fine_tuning.jobs.create(model="tiny", training_file=first.id))
    assert (job.status, job.error.param) == ("failed", "training_file") and job.fine_tuned_model is None
    assert job.error.code == "damaged_content" and first.id in job.error.message
    # What is uploaded again was hashed on its way, so it takes the damaged content's place.
    third = client.files.create(file=("rows.jsonl", rows), purpose="fine-tune")
    assert {client.files.content(one.id).content for one in (first, second, third)} == {rows}
