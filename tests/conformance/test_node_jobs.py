"""A fine-tuning job with the official Node package, from the upload to the answer, and who may use its model.

Training takes its time, so this runs on SQLite alone; the same is tested with the Python package in `test_jobs_run.py`,
`test_checkpoints.py` and `test_permissions.py`.
"""

from __future__ import annotations

import pytest

from job_api import QUICK, tuning_server
from node_sdk import node_sdk
from tunesmith.record.access import DEFAULT_PROJECT, Access

__all__ = ["node_sdk", "tuning_server"]

pytestmark = pytest.mark.slow


def test_item_26_34_35_39_43_44_52_53_from_upload_to_answer(node_sdk, tuning_server):
    access = Access(tuning_server.database)
    facts = {
        "model": tuning_server.model,
        "settings": QUICK,
        "admin_key": access.create_key("administrator", DEFAULT_PROJECT, is_admin=True)[1],
        "projects": [access.create_project(name).id for name in ("birds", "bees")],
    }
    url, key = f"{tuning_server.server.url}/v1", tuning_server.secrets["mine"]
    node_sdk.check("jobs.mjs", "from_upload_to_answer", url, key, **facts)
