"""The thread that delivers events outlives what nobody foresaw, and such an attempt counts as a failed one."""

import time

import pytest

from tunesmith.record.access import DEFAULT_PROJECT, Access
from tunesmith.record.database import Database
from tunesmith.record.jobs import NewJob, create_job, move_job
from tunesmith.record.tables import blobs, deliveries
from tunesmith.record.webhooks import Webhooks
from tunesmith.rest import courier
from webhook_receiver import receiving


@pytest.fixture
def database(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'record.db'}")
    database.migrate()
    Access(database).ensure_default_project()
    yield database
    database.close()


def state_of_delivery(database, wanted):
    give_up = time.monotonic() + 120
    while time.monotonic() < give_up:
        with database.read() as connection:
            found = connection.execute(deliveries.select()).one()
        if wanted(found):
            return found
        time.sleep(0.05)
    raise AssertionError(found)


def test_an_error_that_nobody_foresaw_is_a_failed_attempt(database, monkeypatch):
    send, failures = courier.send, [UnicodeError("odd"), RuntimeError("odd")]
    claim, hiccups = Webhooks.claim, [RuntimeError("odd")]

    def sometimes(kept, function):
        def call(*values):
            if kept:
                raise kept.pop()
            return function(*values)

        return call

    monkeypatch.setattr(courier, "send", sometimes(failures, send))
    monkeypatch.setattr(Webhooks, "claim", sometimes(hiccups, claim))
    with receiving() as receiver:
        Webhooks(database).add(DEFAULT_PROJECT, "all", receiver.url, (), allows_private=True)
        with database.write() as connection:
            connection.execute(blobs.insert().values(sha256="a" * 64, bytes=1, created_at=1))
            job = create_job(
                connection,
                NewJob(
                    project_id=DEFAULT_PROJECT, model="m", base="b", seed=1, method={"type": "supervised"}, spec={},
                    training_file="file-x", training_sha256="a" * 64,
                ),
            )  # fmt: skip
            move_job(connection, move_job(connection, job, "queued", "queued"), "cancelled", "cancelled")
        running = courier.Courier(database)
        try:
            failed = state_of_delivery(database, lambda found: found.last_error is not None)
            # The first attempt, or on a busy machine the one after it.
            assert failed.state == "pending" and failed.attempts >= 1 and len(failures) < 2
        finally:
            running.close()
