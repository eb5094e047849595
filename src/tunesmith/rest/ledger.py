"""What is noted about requests, off their way: the audit log, when keys were used, what they used up.

A thread writes what has gathered twice a second. `close` writes the rest, so a stop in order loses nothing; after a
crash the last half second may be missing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter

from tunesmith.errors import StorageError
from tunesmith.record.access import Access, day_of
from tunesmith.record.audit import AuditEntry, AuditLog
from tunesmith.record.database import Database

_FLUSH_SECONDS = 0.5
#: Entries in one transaction.
_MOST_AT_ONCE = 1000
#: While the record can't be written, so many entries are kept in memory.
_MOST_WAITING = 100_000
#: How often `close` tries when the record can't be written.
_LAST_ATTEMPTS = 3

_log = logging.getLogger(__name__)


class Ledger:
    """Gathers notes and writes them from a thread. All methods but `close` are quick, and any thread may call them."""

    def __init__(self, database: Database) -> None:
        self._audit = AuditLog(database)
        self._access = Access(database)
        self._guard = threading.Lock()
        self._entries: list[AuditEntry] = []
        self._dropped = 0
        self._used_at: dict[str, int] = {}
        self._spent: Counter[tuple[str, int]] = Counter()
        self._being_written: Counter[tuple[str, int]] = Counter()
        self._totals: dict[tuple[str, int], int] = {}
        self._is_closing = threading.Event()
        self._writer: threading.Thread | None = None

    def note(self, entry: AuditEntry) -> None:
        """Add an entry to the audit log, soon."""
        with self._guard:
            if len(self._entries) < _MOST_WAITING:
                self._entries.append(entry)
            else:
                self._dropped += 1
        self._start()

    def touch(self, key_id: str) -> None:
        """Note that a key was used just now."""
        with self._guard:
            self._used_at[key_id] = int(time.time())
        self._start()

    def spend(self, key_id: str, tokens: int) -> None:
        """Note that a key used up tokens; they count from now on."""
        this = (key_id, day_of(time.time()))
        with self._guard:
            self._spent[this] += tokens
            self._totals[this] = self._totals.get(this, 0) + tokens
        self._start()

    def tokens_used(self, key_id: str, day: int) -> int:
        """Return the tokens that a key has used up on a day, as far as is known here."""
        with self._guard:
            return self._totals.get((key_id, day), 0)

    def learn_total(self, key_id: str, day: int, tokens: int) -> None:
        """Take over what the record says a key has used up on a day; other servers may have noted some of it."""
        with self._guard:
            self._totals = {this: total for this, total in self._totals.items() if this[1] >= day - 1}
            total = tokens + self._spent[key_id, day]
            if self._being_written[key_id, day]:
                # The record may have been read before that was there, or after: what is known here holds it.
                total = max(total, self._totals.get((key_id, day), 0))
            self._totals[key_id, day] = total

    def close(self) -> None:
        """Write the rest and stop; what is noted afterwards is lost."""
        self._is_closing.set()
        if self._writer is not None:
            self._writer.join()

    def _start(self) -> None:
        if self._writer is None:
            with self._guard:
                if self._writer is None:
                    self._writer = threading.Thread(target=self._write, name="ledger", daemon=True)
                    self._writer.start()

    def _write(self) -> None:
        while not self._is_closing.wait(_FLUSH_SECONDS):
            self._flush_all()
        for _ in range(_LAST_ATTEMPTS):
            if self._flush_all():
                return
        _log.error("%d entries of the audit log could not be written", len(self._entries) + self._dropped)

    def _flush_all(self) -> bool:
        """Write what has gathered, and return whether all of it could be written."""
        try:
            self._flush_entries()
            self._flush_usage()
        except StorageError as error:
            _log.warning("the audit log waits: %s", error.message)
            return False
        if self._dropped:
            _log.error("%d entries of the audit log were lost while the record couldn't be written", self._dropped)
            self._dropped = 0
        return True

    def _flush_entries(self) -> None:
        while self._entries:
            batch = self._entries[:_MOST_AT_ONCE]
            self._audit.add(batch)
            with self._guard:
                del self._entries[: len(batch)]

    def _flush_usage(self) -> None:
        with self._guard:
            used_at, spent = self._used_at, self._spent
            self._used_at, self._spent, self._being_written = {}, Counter(), spent
        try:
            if used_at or spent:
                self._access.note_use(used_at, spent)
        except StorageError:
            with self._guard:
                self._used_at = {**used_at, **self._used_at}
                self._spent += spent
            raise
        finally:
            with self._guard:
                self._being_written = Counter()
