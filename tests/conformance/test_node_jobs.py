"""A fine-tuning job with the official Node package, from the upload to the answer, and who may use its model.

Items 26, 34, 35, 39, 43, 44, 52 and 53. Training takes its time, so this runs on SQLite alone; the same is tested with
the Python package in `test_jobs_run.py`, `test_checkpoints.py` and `test_permissions.py`.
"""

from __future__ import annotations

import pytest

from job_api import QUICK, tuning_server, upload, wait_status
from node_sdk import node_sdk
from tunesmith.record.access import DEFAULT_PROJECT, Access

__all__ = ["node_sdk", "tuning_server"]

pytestmark = pytest.mark.slow


def test_item_26_34_35_39_43_44_from_upload_to_answer(node_sdk, tuning_server):
    url, key = f"{tuning_server.server.url}/v1", tuning_server.secrets["mine"]
    node_sdk.check("jobs.mjs", "from_upload_to_answer", url, key, model=tuning_server.model, settings=QUICK)


def test_item_52_53_permissions_and_admin_keys(node_sdk, tuning_server):
    with tuning_server.client() as client:
        hyperparameters = {"n_epochs": 1, "batch_size": 6}
        job = client.fine_tuning.jobs.create(
            model=tuning_server.model,
            training_file=upload(client),
            method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
            extra_body={"tunesmith": QUICK},
        )
        model = wait_status(client, job.id, "succeeded").fine_tuned_model
    access = Access(tuning_server.database)
    _, admin_key = access.create_key("administrator", DEFAULT_PROJECT, is_admin=True)
    projects = [access.create_project(name).id for name in ("birds", "bees")]
    url, key = f"{tuning_server.server.url}/v1", tuning_server.secrets["mine"]
    node_sdk.check("models.mjs", "item_52_53", url, key, model=model, projects=projects, admin_key=admin_key)
