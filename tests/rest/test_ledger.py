"""The ledger: what a key used up never seems less while it is written."""

import threading

from tunesmith.record.access import DEFAULT_PROJECT, Access
from tunesmith.rest.ledger import Ledger


def test_what_is_being_written_counts(database, monkeypatch):
    access = Access(database)
    access.ensure_default_project()
    key, _ = access.create_key("one", DEFAULT_PROJECT)
    writes, may_end = threading.Event(), threading.Event()
    write = Access.note_use

    def slow(self, *usage):
        writes.set()
        assert may_end.wait(30)
        write(self, *usage)

    monkeypatch.setattr(Access, "note_use", slow)
    ledger = Ledger(database)
    ledger.learn_total(key.id, 7, 0)
    monkeypatch.setattr("tunesmith.rest.ledger.day_of", lambda _: 7)
    ledger.spend(key.id, 99)
    assert writes.wait(30)
    ledger.learn_total(key.id, 7, 0)  # as it was read before the write
    assert ledger.tokens_used(key.id, 7) == 99
    may_end.set()
    ledger.close()
    ledger.learn_total(key.id, 7, 99)
    assert ledger.tokens_used(key.id, 7) == 99
