"""Permissions of checkpoints over HTTP. No training here: the models are in the record as jobs leave them."""

from __future__ import annotations

import httpx
import openai
import pytest

from model_server import model_server, names, refused
from tunesmith.record.access import DEFAULT_PROJECT, Access

__all__ = ["model_server"]


@pytest.fixture(scope="module")
def shared(model_server):
    """A model of a job, whose name has the form of a checkpoint's."""
    return model_server.add_model(seed=1, step=4, checkpoint_step=4)


def permissions(model_server, who="admin"):
    return model_server.client(who).fine_tuning.checkpoints.permissions


def test_item_52_permissions_are_created_listed_and_deleted(model_server, shared):
    assert shared.name.endswith(":ckpt-step-4")
    access = Access(model_server.database)
    more = [access.create_project(f"project {number}").id for number in range(4)]
    calls, theirs = permissions(model_server), model_server.client("theirs")
    assert shared.name not in names(theirs)
    made = calls.create(shared.name, project_ids=[model_server.other_project, *more])
    assert [one.project_id for one in made.data] == [model_server.other_project, *more]
    assert all(one.object == "checkpoint.permission" and one.id.startswith("cp_") for one in made.data)
    # That it answers them too is tested with the models.
    assert theirs.models.retrieve(shared.name).id == shared.name and shared.name in names(theirs)
    # A second one for the same project is the first.
    again = calls.create(shared.name, project_ids=[more[0], more[0]])
    assert [one.id for one in again.data] == [made.data[1].id]

    page = calls.list(shared.name, limit=2)
    assert (page.has_more, page.first_id, page.last_id) == (True, page.data[0].id, page.data[1].id)
    assert [one.project_id for one in page.data] == [more[3], more[2]]
    pages = [one.project_id for one in calls.list(shared.name, limit=2)]
    assert pages == [*reversed(more), model_server.other_project]
    upwards = [one.project_id for one in calls.list(shared.name, limit=2, order="ascending")]
    assert upwards == [model_server.other_project, *more]
    mine = calls.list(shared.name, project_id=model_server.other_project).data
    assert [one.id for one in mine] == [made.data[0].id]

    gone = calls.delete(made.data[0].id, fine_tuned_model_checkpoint=shared.name)
    assert (gone.id, gone.object, gone.deleted) == (made.data[0].id, "checkpoint.permission", True)
    assert refused(theirs.models.retrieve, shared.name).code == "model_not_found" and shared.name not in names(theirs)
    error = refused(lambda: calls.delete(made.data[0].id, fine_tuned_model_checkpoint=shared.name))
    assert (error.status_code, error.code) == (404, "permission_not_found")


def test_item_53_the_calls_take_an_admin_key(model_server, shared):
    url = f"{model_server.server.url}/v1/fine_tuning/checkpoints/{shared.name}/permissions"
    for who in ("mine", "theirs"):
        for name in (shared.name, "ft:nothing"):
            error = refused(lambda name=name, who=who: permissions(model_server, who).list(name))
            assert (error.status_code, error.code) == (403, "admin_key_needed")
        headers = {"authorization": f"Bearer {model_server.secrets[who]}"}
        assert httpx.post(url, headers=headers, json={"project_ids": [DEFAULT_PROJECT]}).status_code == 403
        assert httpx.delete(f"{url}/cp_nothing", headers=headers).status_code == 403
    # Python's client has a key for administrators too, which its other calls use; here it works for all.
    with openai.OpenAI(base_url=f"{model_server.server.url}/v1", api_key=model_server.secrets["admin"]) as admin:
        assert admin.fine_tuning.checkpoints.permissions.list(shared.name).object == "list"
        assert admin.models.list()


def test_a_deleted_model_takes_its_permissions_along(model_server):
    version = model_server.add_model(seed=2)
    calls = permissions(model_server)
    calls.create(version.name, project_ids=[model_server.other_project])
    assert model_server.client("mine").models.delete(version.name).deleted
    assert refused(lambda: calls.list(version.name)).code == "model_not_found"
    assert version.name not in names(model_server.client("theirs"))


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({}, "missing_required_parameter", "project_ids"),
        ({"project_ids": []}, "empty_array", "project_ids"),
        ({"project_ids": "proj_default"}, "invalid_type", "project_ids"),
        ({"project_ids": [DEFAULT_PROJECT, "proj_nothing"]}, "project_not_found", "project_ids[1]"),
        ({"project_ids": [DEFAULT_PROJECT], "role": "owner"}, "unknown_parameter", "role"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_shared(model_server, shared, body, code, param):
    headers = {"authorization": f"Bearer {model_server.secrets['admin']}"}
    url = f"{model_server.server.url}/v1/fine_tuning/checkpoints/{shared.name}/permissions"
    reply = httpx.post(url, headers=headers, json=body)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (400, code, param)
    listed = permissions(model_server).list(shared.name, project_id=DEFAULT_PROJECT)
    assert listed.data == []
    bad = httpx.get(url, headers=headers, params={"after": "cp_nothing"})
    assert (bad.status_code, bad.json()["error"]["code"]) == (400, "invalid_cursor")
    # Bases, and what was tuned by hand, are everybody's: there is nothing to share.
    base = httpx.get(url.replace(shared.name, "tiny"), headers=headers)
    assert base.status_code == 404
