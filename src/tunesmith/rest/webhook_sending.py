"""Sends one event to one endpoint: signed, once, to an address that was looked at, within a bounded time.

Signatures are those of Standard Webhooks, which OpenAI's clients check: `client.webhooks.unwrap(body, headers)`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ssl
import time
from collections.abc import Iterable

import httpcore
import orjson

from tunesmith import __version__
from tunesmith.errors import RequestError
from tunesmith.record.ids import new_id
from tunesmith.record.webhook_endpoints import Webhook
from tunesmith.record.webhook_urls import Place, addresses_of, check_webhook_url
from tunesmith.record.webhooks import Delivery, Outcome

#: From the look-up of the name to the status of the answer.
TIMEOUT_SECONDS = 10.0
_MOST_ADDRESSES = 4
_PREFIX = "whsec_"

_SocketOptions = Iterable[httpcore.SOCKET_OPTION]


def send(webhook: Webhook, delivery: Delivery, *, timeout_seconds: float = TIMEOUT_SECONDS) -> Outcome:
    """Send an event, and return what the endpoint answered or why it didn't. Redirects aren't followed."""
    body = event_body(delivery)
    try:
        place = check_webhook_url(webhook.url, allows_private=webhook.allows_private)
        status = _post(place, webhook, delivery.event_id, body, time.monotonic() + timeout_seconds)
    except RequestError as error:
        return Outcome(None, error.message)
    except httpcore.TimeoutException:
        return Outcome(None, "The endpoint didn't answer in time.")
    except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
        return Outcome(None, _words(error))
    if 300 <= status < 400:
        return Outcome(status, "The endpoint sent a redirect, which isn't followed.")
    return Outcome(status, None if 200 <= status < 300 else f"The endpoint answered with status {status}.")


def sample(webhook: Webhook, event_type: str | None = None) -> Delivery:
    """Return an event that tells of no job, to try an endpoint with; the first type that it wants, unless said."""
    now, kind = int(time.time()), event_type or webhook.event_types[0]
    return Delivery(new_id("whd_"), now, webhook.id, new_id("evt_"), kind, "ftjob-test", 1)


def check_address(url: str, *, allows_private: bool) -> None:
    """Look at where a URL leads today; it is looked at again each time that something is sent.

    Raises:
        RequestError: it can't be called, or leads into a network that isn't public.
    """
    place = check_webhook_url(url, allows_private=allows_private)
    try:
        addresses_of(place, allows_private=allows_private)
    except OSError:
        raise RequestError(
            "The host of this URL has no address.", fix="Check the name.", code="unknown_host", param="url"
        ) from None


def event_body(delivery: Delivery) -> bytes:
    """Return an event as OpenAI writes it; the same bytes at each attempt."""
    return orjson.dumps(
        {
            "id": delivery.event_id,
            "object": "event",
            "created_at": delivery.created_at,
            "type": delivery.event_type,
            "data": {"id": delivery.subject_id},
        }
    )


def signed_headers(secrets: Iterable[str], event_id: str, body: bytes, now: int) -> dict[str, str]:
    """Return the headers by which the receiver knows who sent a body, and when: any one of the secrets shows it."""
    content = f"{event_id}.{now}.".encode() + body
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(now),
        "webhook-signature": " ".join(_signature(secret, content) for secret in secrets),
    }


def _signature(secret: str, content: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(_PREFIX))
    return f"v1,{base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()}"


def _post(place: Place, webhook: Webhook, event_id: str, body: bytes, deadline: float) -> int:
    now = int(time.time())
    headers = {
        "host": _host_header(place),
        "content-type": "application/json",
        "content-length": str(len(body)),
        "user-agent": f"Tunesmith/{__version__}",
        "connection": "close",
        **signed_headers(webhook.secrets_at(now), event_id, body, now),
    }
    url = httpcore.URL(scheme=place.scheme, host=place.host, port=place.port, target=place.target)
    backend = _CheckedAddresses(place, webhook.allows_private, deadline)
    context = ssl.create_default_context()
    with (
        httpcore.ConnectionPool(ssl_context=context, retries=0, network_backend=backend) as pool,
        pool.stream("POST", url, headers=list(headers.items()), content=body) as response,
    ):
        # Of the answer nothing but its status is read.
        return response.status


def _host_header(place: Place) -> str:
    host = f"[{place.host}]" if ":" in place.host else place.host
    is_usual = place.port == {"https": 443, "http": 80}[place.scheme]
    return host if is_usual else f"{host}:{place.port}"


def _words(error: Exception) -> str:
    """Say what went wrong without an address."""
    if "CERTIFICATE" in str(error).upper():
        return "The endpoint's certificate isn't valid."
    if isinstance(error, OSError) and not isinstance(error, ConnectionError):
        return "The endpoint's host has no address."
    return "The endpoint can't be reached, or broke the connection."


class _CheckedAddresses(httpcore.NetworkBackend):
    """Connects to addresses of one place only, each looked at, and never later than the deadline."""

    def __init__(self, place: Place, allows_private: bool, deadline: float) -> None:
        self._place = place
        self._allows_private = allows_private
        self._deadline = deadline
        self._plain = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,  # noqa: ARG002 - httpcore's signature
        port: int,
        timeout: float | None = None,  # noqa: ARG002
        local_address: str | None = None,
        socket_options: _SocketOptions | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first address that answers; what was looked at isn't looked up again."""
        failure: Exception = httpcore.ConnectError("no address")
        for address in addresses_of(self._place, allows_private=self._allows_private)[:_MOST_ADDRESSES]:
            try:
                stream = self._plain.connect_tcp(
                    address, port, _left(self._deadline, httpcore.ConnectTimeout), local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return _UntilDeadline(stream, self._deadline)
        raise failure


class _UntilDeadline(httpcore.NetworkStream):
    """A stream that ends at its deadline, however slowly bytes come."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 - httpcore's signature
        """Read some bytes."""
        return self._stream.read(max_bytes, _left(self._deadline, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        """Write all bytes."""
        self._stream.write(buffer, _left(self._deadline, httpcore.WriteTimeout))

    def close(self) -> None:
        """Close it."""
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        """Encrypt it; the certificate must be that of the URL's host."""
        left = _left(self._deadline, httpcore.ConnectTimeout)
        return _UntilDeadline(self._stream.start_tls(ssl_context, server_hostname, left), self._deadline)

    def get_extra_info(self, info: str) -> object:
        """See httpcore."""
        return self._stream.get_extra_info(info)


def _left(deadline: float, late: type[Exception]) -> float:
    """Return the seconds that are left.

    Raises:
        TimeoutException: there are none.
    """
    left_seconds = deadline - time.monotonic()
    if left_seconds <= 0:
        raise late
    return left_seconds
