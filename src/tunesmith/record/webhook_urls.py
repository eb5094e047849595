"""URLs that a webhook may have, and addresses that it may lead to.

A server that sends to wherever its users say could be made to send to what only it can reach: its own machine, its
network, its provider's metadata service. So a URL is read strictly and once, every address that its name has is looked
at, and the connection goes to an address that was looked at (`rest.webhook_sending`).
"""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from tunesmith.errors import RequestError

_LONGEST = 2000
#: Of a host's name between two dots (RFC 1035).
_LONGEST_PART = 63
_PORTS = {"https": 443, "http": 80}
#: What a URL is made of; no blanks, no backslashes, nothing that two readers might read in two ways.
_URL = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+(/[A-Za-z0-9\-._~:/?@!$&'()*+,;=%\[\]]*)?")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Place:
    """The parts of a webhook's URL."""

    scheme: str
    host: str
    port: int
    target: str


def check_webhook_url(url: str, *, allows_private: bool) -> Place:
    """Return the parts of a URL that may be called.

    Args:
        url: what the user wrote.
        allows_private: whether it may lead into a network that isn't public, and without encryption.

    Raises:
        RequestError: it isn't one.
    """
    schemes = "https:// or http://" if allows_private else "https://"
    place = _read(url)
    if place is None:
        raise RequestError(
            "This isn't a URL that can be called.",
            fix=f"Give one like {schemes.split()[0]}example.com/hook, without a user name and without #.",
            code="invalid_url",
            param="url",
        )
    if place.scheme == "http" and not allows_private:
        raise RequestError(
            "What is sent to http:// can be read and changed on its way.",
            fix="Use https://, or allow a private place with --allow-private.",
            code="invalid_url",
            param="url",
        )
    return place


def addresses_of(place: Place, *, allows_private: bool) -> list[str]:
    """Return the addresses of a URL's host, all of which may be called.

    Raises:
        RequestError: one of them leads into a network that isn't public (`private_address`).
        OSError: the name has no address.
    """
    found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(one[4][0]) for one in found))
    # One that mixes public and private addresses is up to something: which one is called would be its choice.
    if not allows_private and not all(is_public(ipaddress.ip_address(one.partition("%")[0])) for one in addresses):
        raise RequestError(
            "The URL leads to this machine or to a network that isn't public.",
            fix="If it should, add the webhook with --allow-private.",
            code="private_address",
            param="url",
        )
    return addresses


def is_public(address: _Address) -> bool:
    """Whether an address is one of the public internet, also where another is hidden in it."""
    if isinstance(address, ipaddress.IPv6Address):
        hidden = address.ipv4_mapped or address.sixtofour
        if hidden is None and address.teredo is not None:
            return all(is_public(one) for one in address.teredo)
        if hidden is None and address in _NAT64:
            hidden = ipaddress.IPv4Address(address.packed[-4:])
        if hidden is not None:
            return is_public(hidden)
    return address.is_global and not address.is_multicast and not address.is_reserved


def _read(url: str) -> Place | None:
    if len(url) > _LONGEST or not _URL.fullmatch(url):
        return None
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if not parts.hostname or "@" in parts.netloc or port == 0 or not _is_host(parts.hostname):
        return None
    query = f"?{parts.query}" if parts.query else ""
    return Place(parts.scheme, parts.hostname, port or _PORTS[parts.scheme], (parts.path or "/") + query)


def _is_host(host: str) -> bool:
    """Whether a host can be looked up: of a name with a part that is empty or too long not even the question can be."""
    return ":" in host or all(0 < len(part) <= _LONGEST_PART for part in host.removesuffix(".").split("."))
