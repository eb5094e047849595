"""Fine-tuning jobs over HTTP: what may be asked, and what is answered. No worker: see `test_jobs_run.py` for the rest.

Contract items 15 to 25, 32, 37; catalogue B16, B17, B20, B21, B23, B24.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from job_api import ROWS, lines, refused, upload
from tunesmith.record.tables import idempotency

MODEL = "smollm2-135m"
AUTO = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}
GRADER = {
    "type": "string_check",
    "name": "same",
    "operation": "eq",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
}


@pytest.fixture
def file(client):
    return upload(client)


@pytest.fixture
def create(client, file):
    """Creates a job of the file, or of what the arguments say."""

    def create(**changes):
        return client.fine_tuning.jobs.create(**{"model": MODEL, "training_file": file, **changes})

    return create


def supervised(**hyperparameters):
    return {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}


def test_item_15_a_minimal_job(client, create, file):
    job = create()
    assert job.id.startswith("ftjob-") and job.object == "fine_tuning.job"
    assert (job.model, job.training_file, job.validation_file) == (MODEL, file, None)
    assert job.status in ("validating_files", "queued")
    assert 0 <= job.seed < 2**31 and job.result_files == [] and job.integrations == []
    for name in ("fine_tuned_model", "finished_at", "trained_tokens", "estimated_finish", "error", "metadata"):
        assert getattr(job, name) is None, name
    assert job.organization_id == "org-local" and job.created_at > 0
    assert client.fine_tuning.jobs.retrieve(job.id) == job
    told = [event.message for event in client.fine_tuning.jobs.list_events(job.id)]
    assert told == [f"Validating training file: {file}", f"Created fine-tuning job: {job.id}"]


def test_item_16_seeds(create):
    assert create(seed=0).seed == 0
    assert create(seed=2**31 - 1).seed == 2**31 - 1
    assert create().seed != create().seed
    for wrong in (-1, 2**31, 1.5, True, "7"):
        error = refused(create, seed=wrong)
        assert (error.status_code, error.param) == (400, "seed"), wrong


def test_item_17_methods_echo_their_hyperparameters(create, file):
    job = create(method=supervised(n_epochs=2))
    wanted = {**AUTO, "n_epochs": 2}
    assert job.to_dict()["method"] == {"type": "supervised", "supervised": {"hyperparameters": wanted}}
    assert job.to_dict()["hyperparameters"] == wanted
    for method in (None, {"type": "supervised"}, supervised()):
        assert create(method=method).to_dict()["method"]["supervised"]["hyperparameters"] == AUTO
    # The others are looked at in full, and then refused until the workers know them.
    dpo = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.1}}}
    grading = {"type": "reinforcement", "reinforcement": {"grader": GRADER, "hyperparameters": {"eval_interval": 3}}}
    for method in (dpo, {"type": "dpo"}, grading):
        error = refused(create, method=method, validation_file=file)
        assert (error.status_code, error.code, error.param) == (400, "unsupported_method", "method.type")


def test_item_18_the_old_field_alone(create):
    job = create(hyperparameters={"n_epochs": 4, "learning_rate_multiplier": 0.5})
    wanted = {"n_epochs": 4, "batch_size": "auto", "learning_rate_multiplier": 0.5}
    assert job.to_dict()["hyperparameters"] == wanted
    assert job.to_dict()["method"]["supervised"]["hyperparameters"] == wanted
    both = create(hyperparameters={"n_epochs": 4}, method=supervised(batch_size=2, n_epochs=4))
    assert both.hyperparameters.to_dict() == {**AUTO, "n_epochs": 4, "batch_size": 2}
    error = refused(create, hyperparameters={"n_epochs": 4}, method=supervised(n_epochs=3))
    assert (error.status_code, error.param) == (400, "hyperparameters.n_epochs")
    error = refused(create, hyperparameters={"n_epochs": 4}, method={"type": "dpo"})
    assert (error.status_code, error.param) == (400, "hyperparameters")


WRONG = [
    ("supervised", "n_epochs", 0),
    ("supervised", "n_epochs", 51),
    ("supervised", "n_epochs", "x"),
    ("supervised", "n_epochs", 1.5),
    ("supervised", "n_epochs", True),
    ("supervised", "n_epochs", None),
    ("supervised", "batch_size", 257),
    ("supervised", "batch_size", -1),
    ("supervised", "learning_rate_multiplier", 0),
    ("supervised", "learning_rate_multiplier", -0.5),
    ("supervised", "learning_rate_multiplier", 1e308),
    ("supervised", "beta", 0.1),
    ("dpo", "beta", 0),
    ("dpo", "beta", 2.5),
    ("reinforcement", "compute_multiplier", 11),
    ("reinforcement", "compute_multiplier", 0.00001),
    ("reinforcement", "eval_interval", 0),
    ("reinforcement", "eval_samples", False),
    ("reinforcement", "reasoning_effort", "auto"),
]


def test_item_19_and_b16_hyperparameters_out_of_range(client, create, file):
    for kind, name, value in WRONG:
        more = {"grader": GRADER} if kind == "reinforcement" else {}
        method = {"type": kind, kind: {**more, "hyperparameters": {name: value}}}
        error = refused(create, method=method, validation_file=file)
        param = f"method.{kind}.hyperparameters.{name}"
        assert (error.status_code, error.param) == (400, param), (kind, name, value, error.body)
    error = refused(create, hyperparameters={"n_epochs": 51})
    assert (error.param, error.code) == ("hyperparameters.n_epochs", "integer_above_max_value")
    assert error.body["message"] == (
        "Invalid 'hyperparameters.n_epochs': integer above maximum value. Expected a value <= 50, but got 51 instead."
    )
    body = f'{{"model": "{MODEL}", "training_file": "{file}", "hyperparameters": {{"n_epochs": NaN}}}}'
    reply = httpx.post(f"{client.base_url}fine_tuning/jobs", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 400 and "hyperparameters.n_epochs" in reply.json()["error"]["message"]


def test_methods_that_contradict_themselves(create, file):
    for method, param in (
        ({"type": "supervised", "dpo": {}}, "method.dpo"),
        ({"type": "magic"}, "method.type"),
        ({"supervised": {}}, "method.type"),
        ({"type": "reinforcement"}, "method.reinforcement"),
        ({"type": "reinforcement", "reinforcement": {}}, "method.reinforcement.grader"),
        (grading(type="label_model"), "method.reinforcement.grader.type"),
        (grading(operation=None), "method.reinforcement.grader.operation"),
        (grading(type="multi", calculate_output="a", graders={"a": {"type": "multi"}}), "graders.a.type"),
        (grading(type="multi", calculate_output="a", graders={"a": 3}), "graders.a"),
    ):
        error = refused(create, method=method, validation_file=file)
        assert error.status_code == 400 and error.param.endswith(param), (method, error.body)
    assert refused(create, method=grading()).param == "validation_file"


def grading(**changes):
    return {"type": "reinforcement", "reinforcement": {"grader": {**GRADER, **changes}}}


def test_item_20_and_b17_models_and_files_that_are_not_there(client, create, file):
    for model in ("gpt-nothing", "ft:smollm2-135m:org::abcdefgh", "/etc", "../smollm2-135m"):
        error = refused(create, model=model)
        assert (error.status_code, error.code, error.param) == (400, "model_not_found", "model")
    gone = upload(client, lines(ROWS) + b"\n")
    client.files.delete(gone)
    other = upload(client, b"text", purpose="user_data")
    for param in ("training_file", "validation_file"):
        for wrong in ("file-nothing", gone, other, "../../etc/passwd"):
            error = refused(create, **{param: wrong})
            assert (error.status_code, error.code, error.param) == (400, None, param)
            assert error.body["message"].startswith(f"invalid {param}: {wrong}")
    assert refused(create, training_file=None).param == "training_file"


def test_item_21_and_b20_suffixes(create):
    for suffix in ("a" * 64, "Initial_Tuning 2", None):
        assert create(suffix=suffix).user_provided_suffix == suffix
    for wrong in ("a" * 65, "", "a/b", "a:b", "../x", "\U0001f600", "--", "$(touch x)", "a\nb", "ä", 7):
        error = refused(create, suffix=wrong)
        assert (error.status_code, error.param) == (400, "suffix"), wrong


def test_item_22_and_b20_metadata(create):
    most = {f"{n:064}": "v" * 512 for n in range(16)}
    assert create(metadata=most).metadata == most
    assert create(metadata={"": "", "\U0001f600": "a/b"}).metadata == {"": "", "\U0001f600": "a/b"}
    for wrong in ({str(n): "v" for n in range(17)}, {"k" * 65: "v"}, {"k": "v" * 513}, {"k": 1}, ["k"], {"k": "\0"}):
        error = refused(create, metadata=wrong)
        assert error.status_code == 400 and error.param.startswith("metadata"), wrong


def test_item_23_lists_are_filtered_by_metadata(client, create):
    mark = create().id
    made = {
        "ab": create(metadata={"a": mark, "b": "2"}).id,
        "a": create(metadata={"a": mark}).id,
        "empty": create(metadata={"a": ""}).id,
        "none": create().id,
    }

    def found(**query):
        listed = client.fine_tuning.jobs.list(limit=100, **query)
        return [job.id for job in listed.data if job.id in made.values()]

    assert found() == list(made.values())[::-1]
    assert found(metadata={"a": mark}) == [made["a"], made["ab"]]
    assert found(metadata={"a": mark, "b": "2"}) == [made["ab"]]
    assert found(metadata={"a": ""}) == [made["empty"]]
    assert found(extra_query={"metadata": "null"}) == [made["none"]]
    error = refused(client.fine_tuning.jobs.list, extra_query={"metadata": "a"})
    assert (error.status_code, error.param) == (400, "metadata")


def test_item_24_paging_ends_after_three_requests(client, create):
    made = [create(metadata={"test": "paging"}).id for _ in range(45)]
    seen, asked = [], 0
    page = client.fine_tuning.jobs.list(limit=20, metadata={"test": "paging"})
    while True:
        asked += 1
        seen += [job.id for job in page.data]
        if not page.has_next_page():
            break
        page = page.get_next_page()
    assert (seen, asked) == (made[::-1], 3)
    assert [job.id for job in client.fine_tuning.jobs.list(limit=20, metadata={"test": "paging"})] == seen
    for query in ({"limit": 0}, {"limit": -1}, {"limit": 10**9}, {"after": "ftjob-nothing"}):
        error = refused(client.fine_tuning.jobs.list, **query)
        assert (error.status_code, error.param) == (400, next(iter(query)))


def test_item_25_and_b21_jobs_that_are_not_there(client):
    jobs = client.fine_tuning.jobs
    for name in ("ftjob-nothing", "ftjob-" + "a" * 24, "%2e%2e", "\U0001f600", "a" * 10_000):
        for call in (jobs.retrieve, jobs.cancel, jobs.pause, jobs.resume, jobs.list_events):
            error = refused(call, name)
            assert (error.status_code, error.code, error.param) == (404, "fine_tune_not_found", "fine_tune_id")
            assert error.body["message"] == f"Could not find fine tune: {name[:200]}"


def test_item_32_and_b24_what_a_state_does_not_allow(client, create):
    jobs = client.fine_tuning.jobs
    waiting = create().id
    for call in (jobs.pause, jobs.resume):
        error = refused(call, waiting)
        assert (error.status_code, error.code) == (400, "job_state")
    cancelled = jobs.cancel(waiting)
    assert cancelled.status == "cancelled" and cancelled.finished_at and cancelled.trained_tokens is None
    # The client would try twice more if it were told to.
    patient = client.with_options(max_retries=2)
    for call in (patient.fine_tuning.jobs.cancel, patient.fine_tuning.jobs.pause, patient.fine_tuning.jobs.resume):
        error = refused(call, waiting)
        assert (error.status_code, error.code) == (400, "job_state")
        assert error.request.headers["x-stainless-retry-count"] == "0"
    assert jobs.list_events(waiting).data[0].message == "The job has been cancelled"


def test_item_37_an_integration_without_credentials(create):
    for wrong, param in (
        ([{"type": "wandb", "wandb": {}}], "integrations[0].wandb.project"),
        ([{"type": "other"}], "integrations[0].type"),
        ([{"type": "wandb", "wandb": {"project": "p", "tags": ["t" * 65]}}], "integrations[0].wandb.tags[0]"),
        ([{"type": "wandb", "wandb": {"project": "p", "tags": ["t"] * 51}}], "integrations[0].wandb.tags"),
        ([{"type": "wandb", "wandb": {"project": "p"}}] * 6, "integrations"),
    ):
        error = refused(create, integrations=wrong)
        assert (error.status_code, error.param) == (400, param), error.body
    error = refused(create, integrations=[{"type": "wandb", "wandb": {"project": "p"}}])
    assert (error.status_code, error.code, error.param) == (400, "integration_unavailable", "integrations")
    assert "WANDB_API_KEY isn't set" in error.body["message"]


def test_b23_a_repeated_creation_makes_one_job(platform_server, client, create):
    before = len(list(client.fine_tuning.jobs.list(limit=100)))
    key = {"Idempotency-Key": "one job"}

    def repeat(_):
        return create(seed=5, extra_headers=key).id

    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(repeat, range(8)))) == 1
    assert len(list(client.fine_tuning.jobs.list(limit=100))) == before + 1
    error = refused(create, seed=6, extra_headers=key)
    assert (error.status_code, error.code) == (409, "idempotency_key_reused")
    # A server that died between making the job and keeping the answer leaves a job, and no answer.
    with platform_server.database.write() as connection:
        connection.execute(idempotency.delete())
    assert repeat(None) == client.fine_tuning.jobs.list(limit=1).data[0].id
    assert len(list(client.fine_tuning.jobs.list(limit=100))) == before + 1


def test_unknown_fields_are_refused(create):
    for body, param in (
        ({"n_epochs": 3}, "n_epochs"),
        ({"tunesmith": {"rank": 4}}, "tunesmith.rank"),
        ({"tunesmith": {"adapter": {"rank": 4, "depth": 1}}}, "tunesmith.adapter.depth"),
    ):
        error = refused(create, extra_body=body)
        assert (error.status_code, error.code, error.param) == (400, "unknown_parameter", param)


def test_settings_of_its_own(create):
    own = {
        "adapter": {"kind": "lora", "rank": 8, "target_modules": ["q_proj", "v_proj"]},
        "optimisation": {"schedule": "cosine", "learning_rate": 0.001},
        "data": {"test_fraction": 0.1},
    }
    job = create(extra_body={"tunesmith": own})
    assert job.tunesmith == {"base": MODEL, "priority": 0, "settings": own}
    assert create().tunesmith == {"base": MODEL, "priority": 0, "settings": {}}
    assert create(extra_body={"tunesmith": {"priority": 7}}).tunesmith["priority"] == 7
    for wrong, param in (
        ({"adapter": {"rank": 0}}, "adapter.rank"),
        ({"adapter": {"rank": True}}, "adapter.rank"),
        ({"adapter": {"rank": "8"}}, "adapter.rank"),
        ({"adapter": {"kind": "magic"}}, "adapter"),
        ({"optimisation": {"learning_rate": math.pi}}, "optimisation.learning_rate"),
        ({"method": {"kind": "pretrain"}}, "method.kind"),
        ({"revision": "main"}, "revision"),
        ({"priority": 101}, "priority"),
        ({"priority": True}, "priority"),
        ([], None),
    ):
        error = refused(create, extra_body={"tunesmith": wrong})
        where = "tunesmith" if param is None else f"tunesmith.{param}"
        assert (error.status_code, error.param) == (400, where), (wrong, error.body)
    error = refused(create, extra_body={"tunesmith": own}, hyperparameters={"learning_rate_multiplier": 2})
    assert (error.status_code, error.param) == (400, "tunesmith.optimisation.learning_rate")
    error = refused(create, extra_body={"tunesmith": {"revision": "abcdef0"}})
    assert (error.status_code, error.code) == (400, "revision_mismatch")


def test_a05_no_setting_reaches_outside_the_job(create):
    for reaching in (
        {"base": "/etc"},
        {"name": "../x"},
        {"seed": 1},
        {"data": {"path": "/etc/passwd"}},
        {"data": {"validation_path": "/etc/passwd"}},
        {"data": {"test_path": "/etc/passwd"}},
        {"data": {"sources": ["/etc/passwd"]}},
        {"data": {"replay": {"path": "/etc/passwd"}}},
        {"data": "/etc/passwd"},
        {"limits": {"memory_bytes": 2**40}},
        {"optimisation": {"epochs": 1000}},
    ):
        error = refused(create, extra_body={"tunesmith": reaching})
        assert error.status_code == 400 and error.param.startswith("tunesmith."), reaching
