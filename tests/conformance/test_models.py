"""Models over HTTP: whose they are, what they are called, and how they go.

No training here: the models lie in the registry and the record as jobs leave them (`test_checkpoints.py` trains).
"""

from __future__ import annotations

import httpx

from job_models import add_job, unlisted_model
from model_server import ALIAS, HELLO, ask, model_server, names, refused
from tunesmith.record.jobs import change_job

__all__ = ["model_server"]


def test_item_35_a_model_of_a_job_is_listed_answers_and_goes_for_good(model_server):
    mine = model_server.client("mine")
    version = model_server.add_model(seed=1)
    assert version.name in names(mine)
    model = mine.models.retrieve(version.name)
    assert (model.id, model.object, model.owned_by) == (version.name, "model", "local") and model.created > 0
    assert ask(mine, version.name).model == version.name
    gone = mine.models.delete(version.name)
    assert (gone.id, gone.object, gone.deleted) == (version.name, "model", True)
    assert not version.folder.exists() and version.name not in names(mine)
    for call in (mine.models.delete, mine.models.retrieve, lambda name: ask(mine, name)):
        error = refused(call, version.name)
        assert (error.status_code, error.code) == (404, "model_not_found")


def test_a04_models_of_other_projects_are_not_there(model_server):
    mine, theirs = model_server.client("mine"), model_server.client("theirs")
    version = model_server.add_model(seed=2)
    assert version.name in names(mine) and version.name not in names(theirs)
    for call in (theirs.models.retrieve, theirs.models.delete, lambda name: ask(theirs, name)):
        foreign, missing = refused(call, version.name), refused(call, "ft:nothing")
        assert foreign.status_code == missing.status_code == 404
        assert foreign.body["message"].replace(version.name, "ft:nothing") == missing.body["message"]
    # Its id and its label are names too.
    assert refused(theirs.models.retrieve, version.id).status_code == 404
    assert ask(mine, version.name).model == version.name


def test_only_the_owner_deletes(model_server):
    mine, theirs, admin = (model_server.client(who) for who in ("mine", "theirs", "admin"))
    version = model_server.add_model(seed=3)
    admin.fine_tuning.checkpoints.permissions.create(version.name, project_ids=[model_server.other_project])
    assert version.name in names(theirs) and ask(theirs, version.name).model == version.name
    assert refused(theirs.models.delete, version.name).status_code == 403
    # What was tuned by hand is everybody's to use, and the default project's to delete.
    assert model_server.by_hand.name in names(theirs) and ask(theirs, model_server.by_hand.name)
    assert refused(theirs.models.delete, model_server.by_hand.name).status_code == 403
    for name in (model_server.by_hand.id, model_server.by_hand.label):
        assert refused(mine.models.delete, name).status_code == 404 and ask(mine, name)
    for name in ("tiny", ALIAS):
        error = refused(mine.models.delete, name)
        assert (error.status_code, error.code) == (403, "insufficient_permissions")
    assert mine.models.delete(version.name).deleted
    assert refused(theirs.models.retrieve, version.name).status_code == 404
    assert "tiny" in names(mine) and ask(mine, ALIAS)


def test_a_model_that_a_waiting_job_starts_from_stays(model_server):
    mine = model_server.client("mine")
    version = model_server.add_model(seed=4)
    job = add_job(model_server.database, model_server.home, version.name, state="queued")
    error = refused(mine.models.delete, version.name)
    assert (error.status_code, error.code, error.param) == (400, "model_in_use", "model")
    assert ask(mine, version.name)
    with model_server.database.write() as connection:
        change_job(connection, job.id, state="cancelled")
    assert mine.models.delete(version.name).deleted


def test_deletion_lets_an_answer_finish(model_server):
    mine = model_server.client("mine")
    version = model_server.add_model(seed=5)
    # Long enough that the model goes in the middle of it.
    stream = mine.chat.completions.create(
        model=version.name, messages=HELLO, max_tokens=2_000, stream=True, extra_body={"ignore_eos": True}
    )
    chunks = iter(stream)
    next(chunks)
    assert mine.models.delete(version.name).deleted
    assert refused(ask, mine, version.name).status_code == 404
    rest = list(chunks)
    assert rest[-1].choices[0].finish_reason == "length" and len(rest) > 100


def test_what_no_job_lists_is_not_there(model_server):
    mine = model_server.client("mine")
    job = add_job(model_server.database, model_server.home, str(model_server.base))
    version = unlisted_model(model_server.home, model_server.base, job, seed=6)
    assert version.name not in names(mine)
    for call in (mine.models.retrieve, mine.models.delete, lambda name: ask(mine, name)):
        assert refused(call, version.name).status_code == 404


def test_an_alias_says_which_model_it_is(model_server):
    mine = model_server.client("mine")
    listed = {model.id: model for model in mine.models.list()}
    assert listed[ALIAS].alias_of == "tiny" and not hasattr(listed["tiny"], "alias_of")
    assert mine.models.retrieve(ALIAS).alias_of == "tiny"
    assert ask(mine, ALIAS).model == "tiny"
    chunks = list(mine.chat.completions.create(model=ALIAS, messages=HELLO, max_tokens=4, stream=True))
    assert {chunk.model for chunk in chunks} == {"tiny"}
    assert ask(mine, ALIAS, temperature=0).choices == ask(mine, "tiny", temperature=0).choices
    assert refused(ask, mine, "gpt-4o-mini").code == "model_not_found"


def test_names_in_paths_are_names(model_server):
    headers = {"authorization": f"Bearer {model_server.secrets['mine']}"}
    for path in ("%2e%2e", "..%2f..%2fetc", "a" * 10_000, "%F0%9F%98%80", "%00", "ft:", "ft:x:y:z:00000000"):
        for method in ("GET", "DELETE"):
            reply = httpx.request(method, f"{model_server.server.url}/v1/models/{path}", headers=headers)
            code = "unknown_url" if "%00" in path else "model_not_found"
            assert (reply.status_code, reply.json()["error"]["code"]) == (404, code), (method, path)
