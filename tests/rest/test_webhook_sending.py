"""One event to one endpoint: signed as OpenAI's client checks it, and never to where it shouldn't go (A13)."""

import ipaddress
import json
import socket
import time

import openai
import pytest

from tunesmith.errors import RequestError
from tunesmith.record.webhook_endpoints import Webhook
from tunesmith.record.webhook_urls import addresses_of, check_webhook_url, is_public
from tunesmith.record.webhooks import Delivery
from tunesmith.rest.webhook_sending import check_address, event_body, send, signed_headers
from webhook_receiver import receiving

SECRET = "whsec_" + "c2VjcmV0" * 5 + "YQ=="
EVENT = Delivery("whd_1", 1_700_000_000, "we_1", "evt_1", "fine_tuning.job.succeeded", "ftjob-1", 1)


def webhook(url, *, allows_private=True):
    return Webhook("we_1", 1, "proj_default", "x", url, SECRET, (EVENT.event_type,), allows_private, None)


@pytest.fixture
def receiver():
    with receiving() as receiver:
        yield receiver


def test_openais_client_unwraps_what_arrives(receiver):
    outcome = send(webhook(receiver.url + "/hook?x=1"), EVENT)
    assert (outcome.status, outcome.is_good) == (200, True)
    ((path, headers, body),) = receiver.got
    assert path == "/hook?x=1"
    assert headers["host"] == receiver.url.removeprefix("http://")
    client = openai.OpenAI(api_key="x", webhook_secret=SECRET)
    event = client.webhooks.unwrap(body, headers)
    assert event.type == "fine_tuning.job.succeeded"
    assert (event.id, event.object, event.created_at, event.data.id) == ("evt_1", "event", 1_700_000_000, "ftjob-1")
    assert type(event).__name__ == "FineTuningJobSucceededWebhookEvent"
    for changed in (body.replace(b"ftjob-1", b"ftjob-2"), body + b" "):
        with pytest.raises(openai.InvalidWebhookSignatureError):
            client.webhooks.unwrap(changed, headers)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(body, headers, secret="whsec_" + "b3RoZXI=" * 5)
    old = {**headers, **signed_headers([SECRET], "evt_1", body, int(time.time()) - 400)}
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(body, old)


def test_the_body_is_the_same_at_each_attempt():
    assert event_body(EVENT) == event_body(EVENT)
    assert json.loads(event_body(EVENT)).keys() == {"id", "object", "created_at", "type", "data"}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a13_redirects_are_not_followed(receiver, status):
    receiver.statuses, receiver.headers = [status], {"location": receiver.url + "/inside"}
    outcome = send(webhook(receiver.url), EVENT)
    assert (outcome.status, outcome.is_good) == (status, False) and "redirect" in outcome.error
    assert len(receiver.got) == 1


@pytest.mark.parametrize("status", [400, 404, 429, 500])
def test_a_refusal_is_told_with_its_status(receiver, status):
    receiver.statuses = [status]
    outcome = send(webhook(receiver.url), EVENT)
    assert (outcome.status, outcome.is_good) == (status, False) and str(status) in outcome.error


def test_a13_an_answer_that_drips_is_cut_off_at_the_deadline(receiver):
    receiver.drip_seconds = 0.25  # a minute for the whole answer
    began = time.monotonic()
    outcome = send(webhook(receiver.url), EVENT, timeout_seconds=1.0)
    assert outcome.error == "The endpoint didn't answer in time." and time.monotonic() - began < 30


def test_nobody_there_is_told_without_an_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        # Taken as long as nobody answers there, so that no other test gets it meanwhile.
        outcome = send(webhook(f"http://127.0.0.1:{free.getsockname()[1]}"), EVENT)
    assert outcome.status is None and "127" not in outcome.error
    assert send(webhook("https://no-such-host.invalid"), EVENT).error == "The endpoint's host has no address."


def test_a_certificate_of_another_host_is_refused(receiver):
    outcome = send(webhook(receiver.url.replace("http:", "https:")), EVENT)
    assert outcome.status is None and not receiver.got


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0.0.0.0", "0", "[::1]", "[::]",
        "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "10.0.0.1", "172.16.3.4", "192.168.1.1", "169.254.169.254",
        "100.64.0.1", "[fe80::1]", "[fd00::1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "224.0.0.1", "255.255.255.255",
        "[ff02::1]", "198.18.0.1", "240.0.0.1",
    ],
)  # fmt: skip
def test_a13_addresses_inside_are_refused_in_every_spelling(monkeypatch, host):
    connected = []
    monkeypatch.setattr(socket, "create_connection", lambda *args, **more: connected.append(args))
    outcome = send(webhook(f"https://{host}/hook", allows_private=False), EVENT)
    assert outcome.status is None and connected == []
    with pytest.raises(RequestError) as fault:
        check_address(f"https://{host}/hook", allows_private=False)
    assert fault.value.code in ("private_address", "invalid_url", "unknown_host")


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::ffff:93.184.215.14"])
def test_public_addresses_are_public(address):
    assert is_public(ipaddress.ip_address(address))


def looked_up(monkeypatch, *answers):
    """Let names have these addresses, one list for each look-up."""
    asked = []

    def getaddrinfo(host, port, *args, **more):
        asked.append(host)
        found = answers[min(len(asked), len(answers)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def test_a13_a_name_that_mixes_public_and_private_addresses_is_refused(monkeypatch):
    looked_up(monkeypatch, ["93.184.215.14", "127.0.0.1"])
    place = check_webhook_url("https://example.com/", allows_private=False)
    with pytest.raises(RequestError) as fault:
        addresses_of(place, allows_private=False)
    assert fault.value.code == "private_address"


def test_a13_a_name_that_changes_leads_to_the_address_that_was_looked_at(monkeypatch):
    asked = looked_up(monkeypatch, ["93.184.215.14"], ["127.0.0.1"])
    connected = []

    def create_connection(address, *args, **more):
        connected.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", create_connection)
    send(webhook("https://example.com/hook", allows_private=False), EVENT)
    assert connected == [("93.184.215.14", 443)] and asked == ["example.com"]
    # The next sending looks again, and refuses.
    outcome = send(webhook("https://example.com/hook", allows_private=False), EVENT)
    assert "isn't public" in outcome.error and len(connected) == 1


def test_plain_http_needs_to_be_allowed(receiver):
    outcome = send(webhook(receiver.url, allows_private=False), EVENT)
    assert outcome.status is None and not receiver.got
