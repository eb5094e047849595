"""`/v1/webhook_endpoints` through the official client: added, listed, changed, tried, replaced secrets, removed."""

from __future__ import annotations

import time

import openai
import pytest

from job_api import refused
from server_process import running_server
from tunesmith.record.access import DEFAULT_PROJECT, Access
from tunesmith.record.database import Database
from tunesmith.record.webhook_endpoints import change_webhook
from tunesmith.record.webhooks import EVENT_TYPES, Webhooks
from webhook_receiver import receiving

ENDED = "fine_tuning.job.succeeded"
URL = "https://hooks.example/tuned"

#: There is no network: one name is somewhere on the internet, another in here.
PROGRAM = """
import socket
known, asked = {"hooks.example": "93.184.216.34", "inside.example": "10.0.0.7"}, socket.getaddrinfo
def look_up(host, port, *more, **named):
    name = host.decode() if isinstance(host, bytes) else host
    return asked(known.get(name, name), port, *more, **named)
socket.getaddrinfo = look_up
"""


@pytest.fixture(scope="module")
def platform(tmp_path_factory):
    """A server, its database, and clients of two projects."""
    folder = tmp_path_factory.mktemp("webhooks")
    url = f"sqlite:///{folder / 'home' / 'record.db'}"
    database = Database(url)
    database.migrate()
    access = Access(database)
    access.ensure_default_project()
    other = access.create_project("other").id
    secrets = [access.create_key(name, project)[1] for name, project in (("mine", DEFAULT_PROJECT), ("theirs", other))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_DATABASE_URL", url)
        with running_server(folder / "log", folder / "home", prelude=PROGRAM) as server:
            clients = [openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) for key in secrets]
            yield database, *clients
    database.close()


@pytest.fixture
def client(platform):
    return platform[1]


def test_an_endpoint_lives_and_goes(platform, client):
    made = client.webhooks.create(name="first", url=URL, event_types=[ENDED])
    assert made.id.startswith("we_") and made.object == "webhook_endpoint"
    assert (made.name, made.url, made.event_types) == ("first", URL, [ENDED])
    assert made.signing_secret.startswith("whsec_") and made.signing_secret.endswith(made.signing_secret_hint[3:])
    shown = client.webhooks.retrieve(made.id)
    assert shown.to_dict() == {name: value for name, value in made.to_dict().items() if name != "signing_secret"}
    second = client.webhooks.create(name="second", url=URL, event_types=list(EVENT_TYPES))
    assert [one.id for one in client.webhooks.list(limit=1)] == [second.id, made.id]

    changed = client.webhooks.update(made.id, name="renamed", url=URL + "/2", event_types=["fine_tuning.job.failed"])
    assert (changed.name, changed.url, changed.event_types) == ("renamed", URL + "/2", ["fine_tuning.job.failed"])
    assert client.webhooks.update(made.id, name="again").url == URL + "/2"
    rotated = client.webhooks.rotate_secret(made.id)
    assert rotated.signing_secret not in (made.signing_secret, second.signing_secret)
    assert Webhooks(platform[0]).find(made.id).secret == rotated.signing_secret

    gone = client.webhooks.delete(made.id)
    assert (gone.id, gone.object, gone.deleted) == (made.id, "webhook_endpoint.deleted", True)
    for call in (client.webhooks.retrieve, client.webhooks.delete, client.webhooks.rotate_secret):
        error = refused(call, made.id)
        assert (error.status_code, error.code) == (404, "webhook_endpoint_not_found")
    assert [one.id for one in client.webhooks.list()] == [second.id]
    assert client.webhooks.event_types.list().data == list(EVENT_TYPES)


def test_an_endpoint_is_tried_with_an_event_that_it_can_unwrap(platform, client):
    with receiving() as receiver:
        # Who runs the machine may add one on it.
        inside = Webhooks(platform[0]).add(DEFAULT_PROJECT, "inside", receiver.url, (), allows_private=True)
        tried = client.webhooks.test(inside.id, event_type="fine_tuning.job.cancelled")
        assert (tried.webhook_endpoint_id, tried.status_code, tried.success) == (inside.id, 200, True)
        receiver.statuses = [418]
        assert client.webhooks.test(inside.id, event_type=ENDED).status_code == 418
        ((_, headers, body), _) = receiver.got
        event = client.webhooks.unwrap(body, headers, secret=inside.secret)
        assert (event.type, event.data.id) == ("fine_tuning.job.cancelled", "ftjob-test")
    error = refused(client.webhooks.test, inside.id, event_type=ENDED)
    assert (error.status_code, error.code) == (400, "webhook_failed")


def test_an_old_secret_may_sign_for_another_day(platform, client):
    webhooks = Webhooks(platform[0])
    with receiving() as receiver:
        first = webhooks.add(DEFAULT_PROJECT, "rotating", receiver.url, (), allows_private=True)

        def known_by(*secrets):
            """Say by which secrets the next event is known."""
            client.webhooks.test(first.id, event_type=ENDED)
            _, headers, body = receiver.got[-1]
            found = []
            for secret in secrets:
                try:
                    client.webhooks.unwrap(body, headers, secret=secret)
                except openai.InvalidWebhookSignatureError:
                    continue
                found.append(secret)
            return found

        second = client.webhooks.rotate_secret(first.id, keep_old_secret_active_for_24_hours=True).signing_secret
        assert known_by(first.secret, second) == [first.secret, second]
        kept = webhooks.find(first.id)
        assert 23 * 3600 < kept.old_secret_until - time.time() <= 24 * 3600
        with platform[0].write() as connection:
            change_webhook(connection, kept, old_secret_until=int(time.time()))
        assert known_by(first.secret, second) == [second]
        # Of several, the one before stays; without being asked to, none.
        third = client.webhooks.rotate_secret(first.id, keep_old_secret_active_for_24_hours=True).signing_secret
        assert known_by(first.secret, second, third) == [second, third]
        fourth = client.webhooks.rotate_secret(first.id, keep_old_secret_active_for_24_hours=False).signing_secret
        assert known_by(second, third, fourth) == [fourth]


def test_what_cannot_be_an_endpoint_is_refused(client):
    def create(**changes):
        return client.webhooks.create(**{"name": "new", "url": URL, "event_types": [ENDED], **changes})

    for changes, code, param in (
        ({"url": "http://hooks.example/"}, "invalid_url", "url"),
        ({"url": "https://inside.example/"}, "private_address", "url"),
        ({"url": "https://127.0.0.1/"}, "private_address", "url"),
        ({"url": "file:///etc/passwd"}, "invalid_url", "url"),
        ({"name": " "}, "invalid_name", "name"),
        ({"name": "x" * 101}, "invalid_name", "name"),
        ({"name": "a\0b"}, "invalid_name", "name"),
        ({"event_types": []}, "empty_array", "event_types"),
        ({"event_types": ["batch.completed"]}, "invalid_value", "event_types[0]"),
    ):
        error = refused(create, **changes)
        assert (error.status_code, error.code, error.param) == (400, code, param), changes
    made = create(name="taken")
    assert refused(create, name="taken").code == "webhook_exists"
    assert refused(client.webhooks.update, made.id, url="https://inside.example/").code == "private_address"
    error = refused(client.webhooks.rotate_secret, made.id, keep_old_secret_active_for_24_hours="yes")
    assert (error.status_code, error.param) == (400, "keep_old_secret_active_for_24_hours")
    # A creation whose answer was lost makes one endpoint.
    key = {"Idempotency-Key": "once"}
    assert create(name="once", extra_headers=key).id == create(name="once", extra_headers=key).id


def test_a04_endpoints_of_others_are_not_there(platform, client):
    _, _, theirs = platform
    made = client.webhooks.create(name="of mine", url=URL, event_types=[ENDED])
    for call in (theirs.webhooks.retrieve, theirs.webhooks.delete, theirs.webhooks.rotate_secret):
        foreign, missing = refused(call, made.id), refused(call, "we_" + "a" * 24)
        assert foreign.status_code == missing.status_code == 404
        assert foreign.body["message"].replace(made.id, "we_" + "a" * 24) == missing.body["message"]
    # Nor does a name tell of them.
    own = theirs.webhooks.create(name="of mine", url=URL, event_types=[ENDED])
    assert [one.id for one in theirs.webhooks.list()] == [own.id]
    with pytest.raises(openai.BadRequestError):
        theirs.webhooks.list(after=made.id)
