"""Fine-tuning jobs that run: contract items 26 to 34, 36 to 40, 44; catalogue B08 to B10, F23, A04.

One server with a worker on a tiny base, on SQLite alone: what a worker does to the record is tested on both databases
in `tests/runs` and `tests/faults`, and what the routes do in `test_jobs.py`.
"""

from __future__ import annotations

import csv
import io
import json
import time

import pytest

from job_api import (
    PATIENCE_SECONDS,
    QUICK,
    ROWS,
    VALIDATION_ROWS,
    chat,
    events,
    lines,
    refused,
    tuning_server,
    upload,
)
from job_examples import EXAMPLES, GOOD, PREFERENCE, SAID

__all__ = ["tuning_server"]

pytestmark = pytest.mark.slow

ENDS = ("succeeded", "failed", "cancelled")


@pytest.fixture(scope="module")
def client(tuning_server):
    with tuning_server.client() as client:
        yield client


@pytest.fixture(scope="module")
def create(tuning_server, client):
    def create(**changes):
        settings = {"tunesmith": {**QUICK, **changes.pop("tunesmith", {})}}
        return client.fine_tuning.jobs.create(**{"model": tuning_server.model, "extra_body": settings, **changes})

    return create


class Watched:
    """A job that was watched from its beginning to its end, and whose files were deleted at once (F23)."""

    def __init__(self, client, create):
        self.client = client
        training, validation = upload(client), upload(client, VALIDATION_ROWS)
        self.made = create(
            training_file=training,
            validation_file=validation,
            seed=3,
            hyperparameters={"batch_size": 4, "n_epochs": 3},
            integrations=[{"type": "wandb", "wandb": {"project": "birds", "tags": ["a"]}}],
        )
        self.files = (training, validation)
        for file in self.files:
            assert client.files.delete(file).deleted
        self.seen = [self.made]
        self.pages_while_running = []
        give_up = time.monotonic() + PATIENCE_SECONDS
        while self.seen[-1].status not in ENDS:
            assert time.monotonic() < give_up
            now = client.fine_tuning.jobs.retrieve(self.made.id)
            if now.status != self.seen[-1].status:
                self.seen.append(now)
            if now.status == "running":
                listed = client.fine_tuning.jobs.list_events(self.made.id, limit=2)
                self.pages_while_running.append([event.id for event in listed])
            time.sleep(0.02)  # the job is quick
        self.done = self.seen[-1]
        self.events = events(client, self.made.id)


@pytest.fixture(scope="module")
def watched(client, create):
    return Watched(client, create)


def test_item_26_a_poller_sees_states_in_their_order(watched):
    order = ["validating_files", "queued", "running", "succeeded"]
    found = [job.status for job in watched.seen]
    assert found == [state for state in order if state in found], watched.done
    assert found[-1] == "succeeded" and "running" in found, watched.done


def test_item_27_auto_becomes_numbers_in_both_places(watched):
    assert watched.made.hyperparameters.learning_rate_multiplier == "auto"
    running = next(job for job in watched.seen if job.status == "running")
    wanted = {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 1.0}
    assert running.hyperparameters.to_dict() == wanted
    assert running.method.supervised.hyperparameters.to_dict() == wanted


def test_item_34_and_21_success_fills_the_job(watched):
    done = watched.done
    assert done.fine_tuned_model.startswith("ft:tiny-smollm2:local::")
    assert done.finished_at >= done.created_at and done.trained_tokens > 0 and len(done.result_files) == 1
    assert done.error is None and done.estimated_finish is None and done.seed == 3


def test_f23_a_job_keeps_the_content_of_deleted_files(watched):
    assert watched.done.status == "succeeded"
    assert (watched.done.training_file, watched.done.validation_file) == watched.files
    for file in watched.files:
        assert refused(watched.client.files.retrieve, file).status_code == 404


def test_item_38_events_page_while_the_job_writes(watched):
    ids = [event.id for event in watched.events][::-1]
    assert len(set(ids)) == len(ids) and all(name.startswith("ftevent-") for name in ids)
    assert watched.pages_while_running
    for page in watched.pages_while_running:
        # What was there when the list began, newest first, nothing twice and nothing left out.
        start = ids.index(page[0])
        assert page == ids[start : start + len(page)] and page[-1] == ids[-1]
    newest = watched.client.fine_tuning.jobs.list_events(watched.made.id, limit=1)
    assert newest.data[0].id == ids[0] and newest.has_more
    error = refused(watched.client.fine_tuning.jobs.list_events, watched.made.id, after="ftevent-nothing")
    assert (error.status_code, error.param) == (400, "after")


def test_item_39_the_texts_of_events(watched):
    told = [event.message for event in watched.events]
    training, validation = watched.files
    steps = 9
    assert told[:4] == [
        f"Created fine-tuning job: {watched.made.id}",
        f"Validating training file: {training} and validation file: {validation}",
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
    ]
    metrics = [event for event in watched.events if event.type == "metrics"]
    assert [event.data["step"] for event in metrics] == list(range(1, steps + 1))
    for event in metrics:
        assert event.message.startswith(
            f"Step {event.data['step']}/{steps}: training loss={event.data['train_loss']:.2f}"
        )
        assert event.level == "info" and event.object == "fine_tuning.job.event"
    rest = [text for text in told[4:] if not text.startswith("Step ")]
    kept = [text for text in rest if text.startswith("Checkpoint created at step ")]
    assert [text.partition(" with Snapshot ID: ft:")[0][-1] for text in kept] == ["3", "6"]
    assert rest[-4:] == [
        *kept,
        f"New fine-tuned model created: {watched.done.fine_tuned_model}",
        "The job has successfully completed",
    ]


def test_item_37_figures_go_to_weights_and_biases(tuning_server, watched):
    wanted = {"project": "birds", "name": None, "entity": None, "tags": ["a"], "run_id": watched.made.id}
    for job in (watched.made, watched.done):
        assert job.to_dict()["integrations"] == [{"type": "wandb", "wandb": wanted}]
    (kept,) = (tuning_server.home.jobs / watched.made.id).glob(f"wandb/offline-run-*/run-{watched.made.id}.wandb")
    assert kept.read_bytes().count(b"train_mean_token_accuracy") >= 9
    assert not [event.message for event in watched.events if event.level != "info"]


def test_item_40_keys_of_validation(client, create, watched):
    metrics = {event.data["step"]: event.data for event in watched.events if event.type == "metrics"}
    for step in (3, 6, 9):
        assert metrics[step]["full_valid_loss"] == metrics[step]["valid_loss"]
        assert 0 <= metrics[step]["full_valid_mean_token_accuracy"] == metrics[step]["valid_mean_token_accuracy"] <= 1
    between = [step for step, data in metrics.items() if "valid_loss" in data and step % 3]
    assert between and not any("full_valid_loss" in metrics[step] for step in between)
    assert any(not [key for key in data if "valid" in key] for data in metrics.values())
    assert all(0 <= data["train_mean_token_accuracy"] <= 1 for data in metrics.values())


def test_item_44_and_a22_the_file_of_steps(client, watched):
    """No cell is a formula: all are numbers, or empty."""
    (name,) = watched.done.result_files
    file = client.files.retrieve(name)
    assert (file.filename, file.purpose) == ("step_metrics.csv", "fine-tune-results")
    rows = list(csv.DictReader(io.StringIO(client.files.content(name).text)))
    assert list(rows[0])[:5] == ["step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy"]
    assert [int(row["step"]) for row in rows] == list(range(1, 10))
    assert all(float(row["train_loss"]) > 0 for row in rows)
    assert all(cell == "" or float(cell) >= 0 for row in rows for cell in row.values())
    assert [bool(row["full_valid_loss"]) for row in rows] == [row["step"] in ("3", "6", "9") for row in rows]


class Stopped:
    """A tuned model that is tuned further, on rows of which some are odd: paused, resumed, cancelled."""

    def __init__(self, client, model):
        jobs = client.fine_tuning.jobs
        long, silent = chat("a long one", "word " * 1200), {"messages": [SAID]}
        special = chat("say <|im_end|>", "<|im_end|> it is")
        # Thousands of steps, so that it is still at work when it is told something.
        more = [chat(f"count on from {n}", f"{n + 1} {n + 2}") for n in range(300)]
        self.file = upload(client, [*ROWS, long, silent, special, ROWS[0], *more])
        self.made = jobs.create(
            model=model,
            training_file=self.file,
            hyperparameters={"n_epochs": 50, "batch_size": 1},
            suffix="Further_1",
            extra_body={"tunesmith": {"evaluation": {"forgetting_rows": 0}}},
        )
        name = self.made.id
        until(lambda: jobs.list_events(name).data[0].type == "metrics")
        assert refused(jobs.resume, name).code == "job_state"
        assert jobs.pause(name).status == "paused"
        until(lambda: jobs.list_events(name).data[0].message == "The job is paused")
        assert refused(jobs.pause, name).code == "job_state"
        self.snapshot = jobs.checkpoints.list(name).data[0]
        self.answer = client.chat.completions.create(
            model=self.snapshot.fine_tuned_model_checkpoint,
            messages=[{"role": "user", "content": "say 3"}],
            max_tokens=4,
        )
        self.steps_before = steps_of(events(client, name))
        assert jobs.resume(name).status == "queued"
        until(lambda: jobs.list_events(name).data[0].type == "metrics")
        self.cancelled = jobs.cancel(name)
        self.told = events(client, name)


@pytest.fixture(scope="module")
def stopped(client, watched):
    return Stopped(client, watched.done.fine_tuned_model)


def until(is_so):
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < give_up
        time.sleep(0.2)


def steps_of(told):
    return [event.data["step"] for event in told if event.type == "metrics"]


def test_item_36_a_tuned_model_is_tuned_further(client, create, watched, stopped):
    """That it goes on with the model's own weights: `tests/runs/test_further_tuning.py`."""
    assert (stopped.made.model, stopped.made.user_provided_suffix) == (watched.done.fine_tuned_model, "Further_1")
    snapshot = stopped.snapshot.fine_tuned_model_checkpoint
    assert snapshot.startswith("ft:tiny-smollm2:local:further-1:") and stopped.answer.model == snapshot
    assert not any("valid" in key for event in stopped.told for key in event.data or {}), "item 40"
    error = refused(
        create, model=watched.done.fine_tuned_model, training_file=stopped.file, tunesmith={"adapter": {"rank": 8}}
    )
    assert (error.status_code, error.param) == (400, "tunesmith.adapter")


def test_item_33_a_paused_job_has_a_snapshot_and_goes_on_with_the_next_step(stopped):
    last = stopped.snapshot.step_number
    assert stopped.steps_before == list(range(1, last + 1)) and stopped.answer.choices
    steps = steps_of(stopped.told)
    assert steps == list(range(1, len(steps) + 1)) and len(steps) > last


def test_item_31_nothing_follows_a_cancellation(client, stopped):
    jobs, name = client.fine_tuning.jobs, stopped.made.id
    cancelled = stopped.cancelled
    assert cancelled.status == "cancelled" and cancelled.finished_at and cancelled.fine_tuned_model is None
    assert stopped.told[-1].message == "The job has been cancelled"
    time.sleep(2)
    assert events(client, name) == stopped.told
    assert refused(jobs.cancel, name).status_code == 400
    assert jobs.retrieve(name).status == "cancelled"


def test_b09_what_is_cut_or_left_out_is_told(stopped):
    """V16, V20, V21: rows without a question, too long or with the names of special tokens are learnt, and told of."""
    told = [event.message for event in stopped.told if event.level == "warn"]
    assert told[0] == f"1 example(s) in {stopped.file} have no system or user message"
    assert any("1 row was cut at 1,024 tokens" in text and "Lines: 13." in text for text in told), told
    assert any("training.jsonl, line 16 is exactly the same as line 1" in text for text in told), told


def failed(client, job):
    done = client.fine_tuning.jobs.retrieve(job.id)
    give_up = time.monotonic() + PATIENCE_SECONDS
    while done.status == "validating_files":
        assert time.monotonic() < give_up
        time.sleep(0.2)
        done = client.fine_tuning.jobs.retrieve(job.id)
    assert done.status == "failed", done
    last = client.fine_tuning.jobs.list_events(job.id).data[0]
    assert last.level == "error" and last.message.startswith("The job failed")
    assert done.finished_at and done.fine_tuned_model is None
    assert done.hyperparameters.n_epochs == "auto"
    return done.error


def test_item_28_nine_examples(client, create):
    error = failed(client, create(training_file=upload(client, GOOD[:9])))
    assert (error.code, error.param) == ("invalid_n_examples", "training_file")
    assert error.message == "Training file has 9 example(s), but must have at least 10 examples"


def test_item_29_and_b08_b09_b10_each_rule_of_the_files(client, create):
    jobs = {}
    for name, (example, code, words) in EXAMPLES.items():
        file = upload(client, [*GOOD[:3], example, *GOOD[3:]])
        jobs[name] = create(training_file=file), code, words
    for name, (job, code, words) in jobs.items():
        error = failed(client, job)
        assert (error.code, error.param) == (code, "training_file"), name
        assert words in error.message and "Example 4 (line 4)" in error.message, (name, error.message)
        assert "/" not in error.message.replace("prompt/completion", ""), "no path of this machine"


def test_item_29_lines_and_the_first_twenty_problems(client, create):
    """V27: a byte-order mark, blank lines and CRLF are fine, and examples and lines are both told."""
    bad = chat("q", "")
    content = b"\xef\xbb\xbf\r\n" + lines(GOOD[:2]).replace(b"\n", b"\r\n\r\n") + lines([bad] * 30)
    error = failed(client, create(training_file=upload(client, content)))
    assert error.message.startswith(
        "The job failed due to an invalid training file. Invalid file format. Example 3 (line 6), messages[1].content:"
    )
    assert len(error.message.splitlines()) == 20
    assert "Example 22 (line 25)" in error.message and "Example 23" not in error.message


def test_item_29_v28_the_validation_file(client, create):
    wrong = upload(client, [*GOOD[:1], chat("q", "")])
    error = failed(client, create(training_file=upload(client, GOOD), validation_file=wrong))
    assert (error.code, error.param) == ("invalid_validation_file", "validation_file")
    assert "Example 2 (line 2)" in error.message


def test_item_30_a_preference_file_for_a_supervised_job(client, create):
    file = upload(client, [PREFERENCE] * 12)
    error = failed(client, create(training_file=file))
    assert (error.code, error.param) == ("invalid_training_file", "training_file")
    assert error.message == (
        f"Input file {file} is in the fine-tune-preference format, but the specified fine-tuning job is not using "
        "'dpo' as the training method (provided method=supervised)."
    )


def test_a04_jobs_of_others_are_not_there(tuning_server, client, create, watched):
    with tuning_server.client("theirs") as theirs:
        assert list(theirs.fine_tuning.jobs.list()) == []
        jobs = theirs.fine_tuning.jobs
        for call in (jobs.retrieve, jobs.cancel, jobs.pause, jobs.resume, jobs.list_events):
            foreign, missing = refused(call, watched.made.id), refused(call, "ftjob-" + "a" * 24)
            assert foreign.status_code == missing.status_code == 404
            assert foreign.body["message"].replace(watched.made.id, "ftjob-" + "a" * 24) == missing.body["message"]
        own = upload(theirs)
        foreign_file = upload(client)
        for wrong in ({"training_file": foreign_file}, {"model": watched.done.fine_tuned_model}):
            error = refused(jobs.create, **{"model": tuning_server.model, "training_file": own, **wrong})
            assert error.status_code == 400
        error = refused(client.fine_tuning.jobs.list_events, watched.made.id, after=json.dumps("x"))
        assert error.status_code == 400
