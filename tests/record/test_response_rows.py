"""Responses in the record, on both databases: kept, chained, deleted, out of date, and nobody else's."""

from __future__ import annotations

import pytest

from tunesmith.record import responses
from tunesmith.record.access import Access
from tunesmith.record.database import Database
from tunesmith.record.ids import new_id
from tunesmith.record.responses import KEPT_SECONDS, Responses

NOW = 1_800_000_000


@pytest.fixture
def projects(database):
    access = Access(database)
    return [access.create_project(name).id for name in ("mine", "theirs")]


def said(text):
    return [{"id": new_id("msg_"), "type": "message", "role": "user", "content": text}]


def answered(text, created_at=NOW):
    return {"id": new_id("resp_"), "created_at": created_at, "output": [{"type": "message", "content": text}]}


def kept(database, now=NOW):
    return Responses(database, clock=lambda: now)


def test_a_response_is_kept_as_it_is(database, projects):
    items, response = said("Grüße \U0001f426 \0"), answered("<b>\u2028")
    stored = kept(database).add(projects[0], items, response, None)
    found = kept(database).get(projects[0], response["id"])
    assert found == stored and found.input == items and found.response == response
    assert (found.previous_id, found.links) == (None, 1) and found.bytes > 0


def test_a_conversation_is_the_chain_up_to_one_response(database, projects):
    mine, responses = projects[0], kept(database)
    first = responses.add(mine, said("1"), answered("one"), None)
    second = responses.add(mine, said("2"), answered("two"), first)
    # Two conversations may go on from one response.
    ends = [responses.add(mine, said(text), answered(text), second) for text in ("3", "other")]
    for end in ends:
        assert responses.conversation(mine, end) == [first, second, end]
        assert end.links == 3 and end.bytes > second.bytes > first.bytes
    # What is deleted is gone; what came after it stays.
    assert responses.delete(mine, first.id) and not responses.delete(mine, first.id)
    assert responses.get(mine, first.id) is None
    assert responses.conversation(mine, ends[0]) == [second, ends[0]]


def test_responses_belong_to_their_project(database, projects):
    mine, theirs = projects
    responses = kept(database)
    first = responses.add(mine, said("secret"), answered("secret"), None)
    assert responses.get(theirs, first.id) is None and not responses.delete(theirs, first.id)
    assert responses.conversation(theirs, first) == []
    assert responses.get(mine, first.id) == first
    # Even one that names another project's as its predecessor doesn't lead there.
    stolen = responses.add(theirs, said("?"), answered("?"), first)
    assert responses.conversation(theirs, stolen) == [stolen]


def test_old_responses_are_gone_and_then_deleted(database, projects):
    mine = projects[0]
    old = kept(database).add(mine, said("old"), answered("old"), None)
    young = kept(database).add(mine, said("young"), answered("young", NOW + 1), old)
    later = kept(database, NOW + KEPT_SECONDS)
    assert later.get(mine, old.id) is None and not later.delete(mine, old.id)
    assert later.conversation(mine, young) == [young]
    assert later.delete_expired() == 1 and later.delete_expired() == 0
    assert kept(database).get(mine, old.id) is None and kept(database).get(mine, young.id) == young


def test_many_old_responses_go_in_small_blocks(database, projects, monkeypatch):
    for number in range(8):
        kept(database).add(projects[0], said(str(number)), answered("old"), None)
    deleted, retry = [], Database.retry

    def noted(self, function):
        deleted.append(retry(self, function))
        return deleted[-1]

    monkeypatch.setattr(responses, "_BATCH", 3)
    monkeypatch.setattr(Database, "retry", noted)
    assert kept(database, NOW + KEPT_SECONDS).delete_expired() == 8
    assert deleted == [3, 3, 2, 0]
