"""Permissions in the record: made once, listed in order, taken back."""

from __future__ import annotations

import pytest

from tunesmith.errors import RequestError
from tunesmith.record.access import DEFAULT_PROJECT, Access
from tunesmith.record.pages import Page
from tunesmith.record.permissions import end_permission, list_permissions, share_model

MODEL, OTHER = "ft:tiny:local::00000000", "ft:tiny:local::00000001"


@pytest.fixture
def project_ids(database):
    access = Access(database)
    access.ensure_default_project()
    return [DEFAULT_PROJECT, *(access.create_project(f"project {number}").id for number in range(2))]


def test_a_permission_is_made_once(database, project_ids):
    with database.write() as connection:
        first = share_model(connection, MODEL, project_ids[:2])
        again = share_model(connection, MODEL, [project_ids[2], project_ids[0], project_ids[2]])
        share_model(connection, OTHER, project_ids[:1])
        listed = list_permissions(connection, MODEL, Page(is_descending=False)).items
    assert [one.project_id for one in first] == project_ids[:2]
    assert [one.project_id for one in again] == [project_ids[2], project_ids[0]] and again[1] == first[0]
    assert listed == (*first, again[0])


def test_unknown_projects_get_nothing_and_neither_do_those_beside_them(database, project_ids):
    with pytest.raises(RequestError) as refused, database.write() as connection:
        share_model(connection, MODEL, [project_ids[0], "proj_nothing"])
    assert (refused.value.code, refused.value.param) == ("project_not_found", "project_ids[1]")
    with database.read() as connection:
        assert list_permissions(connection, MODEL, Page()).items == ()


def test_pages_and_filters(database, project_ids):
    with database.write() as connection:
        made = share_model(connection, MODEL, project_ids)
    with database.read() as connection:
        page = list_permissions(connection, MODEL, Page(limit=2))
        rest = list_permissions(connection, MODEL, Page(limit=2, after=page.items[-1].id))
        one = list_permissions(connection, MODEL, Page(), project_id=project_ids[1])
        with pytest.raises(RequestError):
            list_permissions(connection, OTHER, Page(after=made[0].id))
    assert (page.items, page.has_more) == ((made[2], made[1]), True)
    assert (rest.items, rest.has_more) == ((made[0],), False)
    assert one.items == (made[1],)


def test_a_permission_ends_once_and_for_its_own_model(database, project_ids):
    with database.write() as connection:
        (made,) = share_model(connection, MODEL, project_ids[:1])
        assert not end_permission(connection, OTHER, made.id)
        assert end_permission(connection, MODEL, made.id) and not end_permission(connection, MODEL, made.id)
        assert list_permissions(connection, MODEL, Page()).items == ()
