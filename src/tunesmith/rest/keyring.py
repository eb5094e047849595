"""The keys that a server knows: those it was started with, and those of the record."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from dataclasses import dataclass

from tunesmith.errors import SpecError
from tunesmith.record.access import (
    DEFAULT_PROJECT,
    ORGANIZATION,
    REVOCATION_SECONDS,
    Access,
    KeyLimits,
    day_of,
    is_secret,
)
from tunesmith.rest.caller import Caller
from tunesmith.rest.errors import WireError
from tunesmith.rest.ledger import Ledger
from tunesmith.rest.limits import WRONG_KEYS_PER_MINUTE, Buckets, too_many_wrong_keys
from tunesmith.specs.serving import KEY_VARIABLE, ServeSpec

#: Pairs of addresses and right keys that are remembered.
_MOST_SEEN = 10_000

NOBODY = Caller(None, DEFAULT_PROJECT, "anybody on this machine", ORGANIZATION, is_admin=True)


@dataclass(frozen=True, slots=True)
class KnownKey:
    """A key that opens the door until it expires; `project_name` is None for those that the server was started with."""

    caller: Caller
    limits: KeyLimits
    project_name: str | None = None
    expires_at: int | None = None

    def or_refusal(self) -> KnownKey | WireError:
        """Return itself, or why it doesn't open the door any more: also one that was known a moment ago."""
        if self.expires_at is None or time.time() < self.expires_at:
            return self
        return _unauthorized("This API key has expired. Ask for a new one, or make one: tunesmith keys create NAME.")


class Keyring:
    """Tells whose key it is. What the record says is believed for a moment, so that most requests don't ask it.

    Args:
        spec: holds the server's own keys.
        access: the keys of the record; None for a server without one.
        ledger: told what the record says about tokens used.
    """

    def __init__(self, spec: ServeSpec, access: Access | None = None, ledger: Ledger | None = None) -> None:
        self._own = [key.get_secret_value().encode() for key in spec.api_keys]
        self._is_closed = bool(self._own) or not spec.is_loopback
        self._access = access
        self._ledger = ledger
        self._known: dict[bytes, tuple[KnownKey, float]] = {}
        self._asking: dict[bytes, asyncio.Task[KnownKey | None]] = {}
        self._guesses = Buckets()
        self._seen: dict[tuple[str, bytes], None] = {}
        self._open_until = 0.0

    @property
    def is_closed(self) -> bool:
        """Whether callers must send a key, as far as is known without asking the record."""
        return self._is_closed

    async def needs_key(self) -> bool:
        """Whether callers must send a key: always once there is one.

        Raises:
            StorageError: the record can't be read.
        """
        if not self._is_closed and self._access is not None and time.monotonic() > self._open_until:
            asked_at = time.monotonic()
            self._is_closed = await asyncio.to_thread(self._access.has_keys)
            self._open_until = asked_at + REVOCATION_SECONDS
        return self._is_closed

    async def identify(self, authorization: str, address: str) -> KnownKey | WireError:
        """Return whose key it is that came from an address, or why the caller isn't let in.

        Keys of the record are too long to guess, so they open the door whatever else came from the address. Keys that
        people made up aren't compared any more once an address has sent too many wrong ones, unless that very key was
        right from there before: nobody can go on guessing, and nobody can lock out those who share the address.

        Raises:
            StorageError: the record can't be read.
        """
        if not authorization:
            return _unauthorized("You didn't provide an API key. Send it as a header: Authorization: Bearer YOUR_KEY.")
        given = _secret_of(authorization)
        digest = hashlib.sha256(given or b"").digest()
        known, until = self._known.get(digest, (None, 0.0))
        if known is not None and time.monotonic() < until:
            return known.or_refusal()
        found = given and await self._look_up(given, digest)
        if found:
            return found.or_refusal()
        # Taken before the keys are compared, so that many at once count too.
        was_right = (address, digest) in self._seen
        wait_seconds = 0.0 if was_right else self._guesses.take(address, WRONG_KEYS_PER_MINUTE)
        if wait_seconds:
            return too_many_wrong_keys(wait_seconds)
        own = given and self._own_key(given)
        if not own:
            return _unauthorized("Incorrect API key provided.")
        if not was_right:
            self._guesses.give_back(address, WRONG_KEYS_PER_MINUTE)
            self._remember(address, digest)
        return own

    def _remember(self, address: str, digest: bytes) -> None:
        self._seen[address, digest] = None
        if len(self._seen) > _MOST_SEEN:
            del self._seen[next(iter(self._seen))]

    async def _look_up(self, given: bytes, digest: bytes) -> KnownKey | None:
        if self._access is None or not is_secret(given.decode("latin-1")):
            return None
        # Many requests with one key ask once.
        asking = self._asking.get(digest)
        if asking is None:
            asking = asyncio.create_task(self._ask(given, digest))
            self._asking[digest] = asking
            asking.add_done_callback(lambda _: self._asking.pop(digest, None))
        return await asyncio.shield(asking)

    async def _ask(self, given: bytes, digest: bytes) -> KnownKey | None:
        asked_at = time.monotonic()
        known = await asyncio.to_thread(self._find, given.decode("latin-1"))
        if known is None:
            self._known.pop(digest, None)
        else:
            self._known[digest] = (known, asked_at + REVOCATION_SECONDS)
        return known

    def _find(self, secret: str) -> KnownKey | None:
        assert self._access is not None
        key = self._access.find_key(secret)
        if key is None:
            return None
        if key.limits.tokens_per_day is not None and self._ledger is not None:
            day = day_of(time.time())
            self._ledger.learn_total(key.id, day, self._access.tokens_used(key.id, day))
        caller = Caller(key.id, key.project_id, key.name, key.organization_id, key.is_admin)
        return KnownKey(caller, key.limits, key.project_name, key.expires_at)

    def _own_key(self, given: bytes) -> KnownKey | None:
        # Every key is compared, in constant time: the time of the answer says nothing about them.
        matches = [hmac.compare_digest(given, known) for known in self._own]
        if not any(matches):
            return None
        name = f"server-{matches.index(True) + 1}"
        return KnownKey(Caller(name, DEFAULT_PROJECT, name, ORGANIZATION, is_admin=True), KeyLimits())


def check_has_key(spec: ServeSpec, access: Access) -> None:
    """Refuse to be reachable from other machines without a key.

    Raises:
        SpecError: the server would be (`key_needed`).
        StorageError: the record can't be read.
    """
    if spec.api_keys or spec.is_loopback or access.keys():
        return
    raise SpecError(
        f"{spec.host} can be reached from other machines, so a key is needed.",
        where="host",
        fix=f"Make one with `tunesmith keys create NAME`, set {KEY_VARIABLE}, or listen on 127.0.0.1.",
        code="key_needed",
        param="host",
    )


def _secret_of(authorization: str) -> bytes | None:
    """Return what stands behind `Bearer`, or None."""
    scheme, _, key = authorization.partition(" ")
    return key.strip().encode("latin-1") if scheme.lower() == "bearer" and key.strip() else None


def _unauthorized(message: str) -> WireError:
    return WireError(401, message, "invalid_api_key", headers={"www-authenticate": "Bearer"})
