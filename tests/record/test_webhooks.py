"""Webhooks in the record: events are written with what they tell of, claimed once, and tried again for three days."""

import time

import pytest
from sqlalchemy import func, select, update

from tunesmith.errors import RequestError
from tunesmith.record.access import DEFAULT_PROJECT, Access
from tunesmith.record.jobs import NewJob, create_job, move_job
from tunesmith.record.tables import blobs, deliveries, webhooks
from tunesmith.record.webhooks import (
    CLAIM_SECONDS,
    EVENT_TYPES,
    MOST_ATTEMPTS,
    WAIT_SECONDS,
    Outcome,
    Webhooks,
    announce,
)

URL = "https://example.com/hook"
SUCCEEDED = EVENT_TYPES[0]
GOOD, BAD = Outcome(204), Outcome(500, "The endpoint answered with status 500.")


@pytest.fixture
def record(database):
    access = Access(database)
    access.ensure_default_project()
    with database.write() as connection:
        connection.execute(blobs.insert().values(sha256="a" * 64, bytes=1, created_at=1))
    return Webhooks(database)


def make_job(connection, project_id=DEFAULT_PROJECT):
    return create_job(
        connection,
        NewJob(
            project_id=project_id, model="m", base="b", seed=1, method={"type": "supervised"}, spec={},
            training_file="file-x", training_sha256="a" * 64,
        ),
    )  # fmt: skip


def waiting(database):
    with database.read() as connection:
        return connection.execute(select(deliveries).order_by(deliveries.c.seq)).all()


def turn_back(database, **values):
    with database.write() as connection:
        connection.execute(update(deliveries).values(**values))


@pytest.mark.parametrize("end", ["succeeded", "failed", "cancelled"])
def test_the_end_of_a_job_and_its_event_are_written_together(database, record, end):
    all_of_it = record.add(DEFAULT_PROJECT, "all", URL, ())
    record.add(DEFAULT_PROJECT, "other events", URL, [one for one in EVENT_TYPES if not one.endswith(end)])
    with database.write() as connection:
        job = make_job(connection)
        job = move_job(connection, job, "queued", "queued")
        job = move_job(connection, job, "running", "claimed")
        move_job(connection, job, end, "ended")
    (row,) = waiting(database)
    assert (row.webhook_id, row.event_type, row.subject_id) == (all_of_it.id, f"fine_tuning.job.{end}", job.id)
    assert row.event_id.startswith("evt_")


def test_an_end_that_is_not_written_tells_nobody(database, record):
    record.add(DEFAULT_PROJECT, "all", URL, ())
    with pytest.raises(ZeroDivisionError), database.write() as connection:
        move_job(connection, make_job(connection), "cancelled", "cancelled")
        raise ZeroDivisionError
    assert waiting(database) == []


def test_an_event_is_told_to_its_own_project_only(database, record):
    other = Access(database).create_project("other").id
    record.add(other, "other", URL, ())
    with database.write() as connection:
        move_job(connection, make_job(connection), "cancelled", "cancelled")
    assert waiting(database) == []


def test_what_is_claimed_is_claimed_once_and_again_when_its_courier_died(database, record):
    record.add(DEFAULT_PROJECT, "one", URL, ())
    with database.write() as connection:
        announce(connection, DEFAULT_PROJECT, SUCCEEDED, "ftjob-1")
        announce(connection, DEFAULT_PROJECT, SUCCEEDED, "ftjob-2")
    now = int(time.time())
    ((first, webhook),) = record.claim(now, 8)
    assert (first.subject_id, first.attempts, webhook.secret[:6]) == ("ftjob-1", 1, "whsec_")
    # In order, but one that waits for its next attempt doesn't keep the next one back.
    assert [one.subject_id for one, _ in record.claim(now, 8)] == ["ftjob-2"]
    assert record.claim(now, 8) == []
    ((again, _),) = record.claim(now + CLAIM_SECONDS, 8)
    assert (again.event_id, again.attempts) == (first.event_id, 2)
    assert record.claim(now + CLAIM_SECONDS, 8, except_for={webhook.id}) == []


def test_failures_are_tried_again_later_and_later_and_not_for_ever(database, record):
    record.add(DEFAULT_PROJECT, "one", URL, ())
    with database.write() as connection:
        announce(connection, DEFAULT_PROJECT, SUCCEEDED, "ftjob-1")
    for attempt in range(1, MOST_ATTEMPTS + 1):
        now = int(time.time())
        ((delivery, webhook),) = record.claim(now, 1)
        assert delivery.attempts == attempt
        record.settle(delivery, BAD)
        (row,) = waiting(database)
        if attempt < MOST_ATTEMPTS:
            wait_seconds = WAIT_SECONDS[attempt - 1]
            assert wait_seconds - 1 <= row.next_attempt_at - now <= 1.1 * wait_seconds + 2
            assert record.claim(now + wait_seconds // 2, 1) == []
            turn_back(database, next_attempt_at=0)
    assert (row.state, row.last_status) == ("failed", 500)
    assert record.claim(2**40, 1) == []
    assert record.counts() == {webhook.id: {"failed": 1}}
    assert record.last_failures() == {webhook.id: BAD.error}


def test_what_arrived_stays_delivered_whatever_a_late_courier_says(database, record):
    record.add(DEFAULT_PROJECT, "one", URL, ())
    with database.write() as connection:
        announce(connection, DEFAULT_PROJECT, SUCCEEDED, "ftjob-1")
    ((late, _),) = record.claim(int(time.time()), 1)
    ((again, _),) = record.claim(int(time.time()) + CLAIM_SECONDS, 1)
    record.settle(again, GOOD)
    record.settle(late, BAD)
    (row,) = waiting(database)
    assert (row.state, row.last_status) == ("delivered", 204) and row.delivered_at


def test_an_endpoint_that_is_gone_is_left_alone(database, record):
    gone = record.add(DEFAULT_PROJECT, "gone", URL, ())
    with database.write() as connection:
        announce(connection, DEFAULT_PROJECT, SUCCEEDED, "ftjob-1")
        announce(connection, DEFAULT_PROJECT, SUCCEEDED, "ftjob-2")
    ((delivery, _),) = record.claim(int(time.time()), 1)
    record.settle(delivery, Outcome(410, "gone"))
    assert record.find(gone.id).disabled_at
    assert {row.state for row in waiting(database)} == {"failed"}
    with database.write() as connection:
        announce(connection, DEFAULT_PROJECT, SUCCEEDED, "ftjob-3")
    assert len(waiting(database)) == 2


def test_a_clock_that_jumped_back_makes_nothing_wait_for_years(database, record):
    record.add(DEFAULT_PROJECT, "one", URL, ())
    with database.write() as connection:
        announce(connection, DEFAULT_PROJECT, SUCCEEDED, "ftjob-1")
    turn_back(database, next_attempt_at=int(time.time()) + 10**9)
    assert len(record.claim(int(time.time()), 1)) == 1


def test_old_deliveries_are_forgotten_and_pending_ones_never(database, record):
    one = record.add(DEFAULT_PROJECT, "one", URL, ())
    with database.write() as connection:
        announce(connection, DEFAULT_PROJECT, SUCCEEDED, "ftjob-1")
    turn_back(database, created_at=1)
    assert record.delete_old() == 0
    turn_back(database, state="delivered")
    assert record.delete_old() == 1
    with database.write() as connection:
        announce(connection, DEFAULT_PROJECT, SUCCEEDED, "ftjob-2")
    assert record.remove("one") == one
    with database.read() as connection:
        assert [connection.scalar(select(func.count()).select_from(table)) for table in (webhooks, deliveries)] == [
            0,
            0,
        ]


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/", "file:///etc/passwd", "https://", "https:///x", "https://user:pass@example.com/",
        "https://user@example.com/", "https://example.com\\@evil/", "https://example.com/ x", "https://example.com/#x",
        "https://example.com:0/", "https://example.com:99999/", "https://exa mple.com/", "https://example.com/\nx",
        "https://éxample.com/", "https://[::1/", "https://a..example.com/",
        "https://.example.com/", "https://example.com../", "https://" + "x" * 64 + ".example.com/", "example.com",
        "https://example.com/" + "x" * 2000, "",
        "http://example.com/",
    ],
)  # fmt: skip
def test_a13_what_is_not_a_plain_url_is_refused(record, url):
    with pytest.raises(RequestError) as fault:
        record.add(DEFAULT_PROJECT, "x", url, ())
    assert fault.value.code == "invalid_url"


def test_wrong_names_and_events_are_refused(record):
    record.add(DEFAULT_PROJECT, "mine", URL, ())
    for name, events, code in (
        ("mine", (), "webhook_exists"),
        (" ", (), "invalid_name"),
        ("x" * 101, (), "invalid_name"),
        ("x", ["fine_tuning.job.paused"], "unknown_event"),
    ):
        with pytest.raises(RequestError) as fault:
            record.add(DEFAULT_PROJECT, name, URL, events)
        assert fault.value.code == code
    with pytest.raises(RequestError) as fault:
        record.remove("nobody")
    assert fault.value.code == "no_such_webhook"
    assert record.add(DEFAULT_PROJECT, "local", "http://127.0.0.1:9/x?y=1", (), allows_private=True).allows_private
