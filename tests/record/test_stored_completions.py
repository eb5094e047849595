"""Stored completions on both databases."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select

from tunesmith.errors import RequestError
from tunesmith.record.access import DEFAULT_PROJECT, Access
from tunesmith.record.completions import Completions, NewCompletion
from tunesmith.record.pages import Page
from tunesmith.record.tables import completion_messages, completion_metadata


@pytest.fixture
def completions(database):
    access = Access(database)
    access.ensure_default_project()
    return Completions(database)


def new(number, *, project_id=DEFAULT_PROJECT, model="base", metadata=None, messages=1):
    return NewCompletion(
        id=f"chatcmpl-{number}",
        created_at=1_000 - number,  # clocks may go back
        project_id=project_id,
        model=model,
        request_id=f"req_{number}",
        messages=[{"role": "user", "content": f"{i}\0"} for i in range(messages)],
        request={"seed": number},
        response={"id": f"chatcmpl-{number}"},
        metadata=metadata or {},
    )


def ids(found):
    return [one.id.removeprefix("chatcmpl-") for one in found.items]


UP = Page(20, None, is_descending=False)


def test_lists_are_in_order_and_filtered(completions, database):
    other = Access(database).create_project("other")
    for number in range(6):
        completions.add(new(number, model="ft:x" if number % 2 else "base", metadata={"n": str(number // 2), "k": ""}))
    completions.add(new(9, project_id=other.id))
    assert ids(completions.list(DEFAULT_PROJECT, UP)) == list("012345")
    assert ids(completions.list(DEFAULT_PROJECT, Page(20))) == list("543210")
    first = completions.list(DEFAULT_PROJECT, Page(4, None, is_descending=False))
    assert ids(first) == list("0123") and first.has_more
    rest = completions.list(DEFAULT_PROJECT, Page(4, first.items[-1].id, is_descending=False))
    assert ids(rest) == list("45") and not rest.has_more
    assert ids(completions.list(DEFAULT_PROJECT, UP, model="ft:x")) == list("135")
    assert ids(completions.list(DEFAULT_PROJECT, UP, metadata={"n": "1"})) == list("23")
    assert ids(completions.list(DEFAULT_PROJECT, UP, metadata={"n": "1", "k": ""}, model="base")) == list("2")
    assert ids(completions.list(DEFAULT_PROJECT, UP, metadata={"n": "1", "k": "x"})) == []
    assert ids(completions.list(other.id, UP)) == ["9"]
    with pytest.raises(RequestError):
        completions.list(DEFAULT_PROJECT, Page(20, "chatcmpl-9"))


def test_what_was_stored_comes_back_and_goes(completions, database):
    completions.add(new(1, metadata={"b": "2", "a": "1"}, messages=3))
    completions.add(new(2, messages=1))
    stored = completions.get(DEFAULT_PROJECT, "chatcmpl-1")
    assert (stored.created_at, stored.model, stored.request_id) == (999, "base", "req_1")
    assert (stored.request, stored.response) == ({"seed": 1}, {"id": "chatcmpl-1"})
    assert stored.metadata == {"a": "1", "b": "2"}
    found = completions.messages(DEFAULT_PROJECT, "chatcmpl-1", UP)
    assert [(one.id, one.message["content"]) for one in found.items] == [
        (f"chatcmpl-1-{i}", f"{i}\0") for i in range(3)
    ]
    with pytest.raises(RequestError):
        completions.messages(DEFAULT_PROJECT, "chatcmpl-1", Page(20, "chatcmpl-2-0"))

    changed = completions.set_metadata(DEFAULT_PROJECT, "chatcmpl-1", {"c": "3"})
    assert changed.metadata == {"c": "3"} and completions.get(DEFAULT_PROJECT, "chatcmpl-1") == changed
    for project_id, completion_id in (("proj_other", "chatcmpl-1"), (DEFAULT_PROJECT, "chatcmpl-3")):
        assert completions.get(project_id, completion_id) is None
        assert completions.messages(project_id, completion_id, UP) is None
        assert completions.set_metadata(project_id, completion_id, {}) is None
        assert not completions.delete(project_id, completion_id)
    assert completions.delete(DEFAULT_PROJECT, "chatcmpl-1")
    assert not completions.delete(DEFAULT_PROJECT, "chatcmpl-1")
    with database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(completion_messages)) == 1
        assert connection.scalar(select(func.count()).select_from(completion_metadata)) == 0
