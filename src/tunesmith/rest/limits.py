"""How much a key may ask for, how often an address may guess, and the headers that say so."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable

from tunesmith.record.access import KeyLimits, day_of, seconds_left_of_day
from tunesmith.rest.errors import WireError
from tunesmith.rest.ledger import Ledger

#: Wrong keys that one address may send in a minute.
WRONG_KEYS_PER_MINUTE = 60
#: Addresses and keys that are remembered at most; those that asked longest ago are forgotten first.
_MOST_REMEMBERED = 10_000


class Buckets:
    """Named allowances of so many a minute, each refilled steadily: a full one may be used up at once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def left(self, name: str, per_minute: int) -> float:
        """Return what is left."""
        level, at = self._levels.get(name, (float(per_minute), self._clock()))
        return min(float(per_minute), level + (self._clock() - at) * per_minute / 60)

    def take(self, name: str, per_minute: int) -> float:
        """Take one; return 0, or after how many seconds there is one to take."""
        left = self.left(name, per_minute)
        wait_seconds = max(0.0, (1 - left) * 60 / per_minute)
        self._levels[name] = (left if wait_seconds else left - 1, self._clock())
        self._levels.move_to_end(name)
        if len(self._levels) > _MOST_REMEMBERED:
            self._levels.popitem(last=False)
        return wait_seconds

    def give_back(self, name: str, per_minute: int) -> None:
        """Give back one that was taken for nothing."""
        self._levels[name] = (min(float(per_minute), self.left(name, per_minute) + 1), self._clock())


class Allowance:
    """What one request may use: refuses it beforehand, tells what is left in headers."""

    def __init__(self, key_id: str, limits: KeyLimits, requests: Buckets, ledger: Ledger) -> None:
        self._key_id = key_id
        self._limits = limits
        self._requests = requests
        self._ledger = ledger

    def refuse(self) -> WireError | None:
        """Count a request; return why it comes too early, or None."""
        budget = self._limits.tokens_per_day
        now = time.time()
        if budget is not None and self._ledger.tokens_used(self._key_id, day_of(now)) >= budget:
            return WireError(
                429,
                f"You exceeded your current quota: this key may use {budget:,} tokens a day, until midnight UTC.",
                "insufficient_quota",
                headers={**_retry_after(seconds_left_of_day(now)), **self.headers()},
            )
        per_minute = self._limits.requests_per_minute
        if per_minute is None:
            return None
        wait_seconds = self._requests.take(self._key_id, per_minute)
        if not wait_seconds:
            return None
        return WireError(
            429,
            f"Rate limit reached: this key may send {per_minute:,} requests a minute. "
            f"Please try again in {wait_seconds:.3g}s.",
            "rate_limit_exceeded",
            can_retry=True,
            headers={**_retry_after(wait_seconds), **self.headers()},
        )

    def spend(self, tokens: int) -> None:
        """Note tokens that the request used up."""
        if self._limits.tokens_per_day is not None:
            self._ledger.spend(self._key_id, tokens)

    def headers(self) -> dict[str, str]:
        """Return OpenAI's headers on limits; none for a key without any."""
        told: dict[str, str] = {}
        per_minute, budget = self._limits.requests_per_minute, self._limits.tokens_per_day
        if per_minute is not None:
            left = self._requests.left(self._key_id, per_minute)
            told |= _told("requests", per_minute, int(left), (per_minute - left) * 60 / per_minute)
        if budget is not None:
            now = time.time()
            unused = max(0, budget - self._ledger.tokens_used(self._key_id, day_of(now)))
            told |= _told("tokens", budget, unused, seconds_left_of_day(now))
        return told


def too_many_wrong_keys(wait_seconds: float) -> WireError:
    """Return the error for an address that has sent too many wrong keys; a repetition would send one more."""
    return WireError(
        429,
        "Too many requests with an incorrect API key came from your address. Wait a minute, and check the key.",
        "rate_limit_exceeded",
        headers=_retry_after(wait_seconds),
    )


def _told(what: str, limit: int, remaining: int, reset_seconds: float) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{what}": str(limit),
        f"x-ratelimit-remaining-{what}": str(remaining),
        f"x-ratelimit-reset-{what}": _duration(reset_seconds),
    }


def _duration(seconds: float) -> str:
    """Return a duration as OpenAI writes it: `350ms`, `6.2s`, `1h23m4s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    if seconds < 60:
        return f"{seconds:.4g}s"
    hours, rest = divmod(math.ceil(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{f'{hours}h' if hours else ''}{minutes}m{rest}s"


def _retry_after(wait_seconds: float) -> dict[str, str]:
    return {"retry-after": str(math.ceil(wait_seconds)), "retry-after-ms": str(math.ceil(wait_seconds * 1000))}
