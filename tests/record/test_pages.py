"""Pages of lists on both databases: cursors that are none, and rows that come and go meanwhile."""

from __future__ import annotations

import itertools

import pytest
from sqlalchemy import delete, true

from tunesmith.errors import RequestError
from tunesmith.record.access import Access
from tunesmith.record.pages import Page, rows_of
from tunesmith.record.tables import projects


def read(database, page, scope=None):
    with database.read() as connection:
        found = rows_of(connection, projects, page, true() if scope is None else scope)
    return [row.id for row in found.items], found.has_more


@pytest.fixture
def ids(database):
    access = Access(database)
    return [access.create_project(f"project {number}").id for number in range(9)]


def test_b19_what_is_no_cursor_is_refused(database, ids):
    for cursor in ("nobody", "", "\0", "x\0", "\ud800", "' OR 1=1 --", "%", "x" * 10_000, ids[0][:-1]):
        with pytest.raises(RequestError) as caught:
            read(database, Page(2, cursor))
        assert (caught.value.code, caught.value.param) == ("invalid_cursor", "after")
    with database.write() as connection:
        connection.execute(delete(projects).where(projects.c.id == ids[3]))
    with pytest.raises(RequestError):
        read(database, Page(2, ids[3]))
    # Somebody else's is none.
    with pytest.raises(RequestError):
        read(database, Page(2, ids[1]), projects.c.id != ids[1])


@pytest.mark.parametrize("is_descending", [False, True])
def test_b19_rows_that_come_and_go_make_no_page_skip_or_repeat(database, ids, is_descending):
    lasting, seen, more = set(ids), [], True
    access, numbers = Access(database), itertools.count()
    while more:
        page, more = read(database, Page(2, seen[-1] if seen else None, is_descending=is_descending))
        seen += page
        if len(seen) < 8:
            access.create_project(f"later {next(numbers)}")
            gone = next(one for one in ids if one in lasting and one != seen[-1])
            lasting.discard(gone)
            with database.write() as connection:
                connection.execute(delete(projects).where(projects.c.id == gone))
    assert len(seen) == len(set(seen)) and lasting <= set(seen)
    order = [one for one in seen if one in ids]
    assert order == [one for one in (reversed(ids) if is_descending else ids) if one in order]
