"""`tunesmith audit`: the newest entries, or what follows a place."""

from __future__ import annotations

import json

import pytest

from tunesmith.cli.main import run
from tunesmith.record.access import DEFAULT_PROJECT, Access
from tunesmith.record.audit import AuditEntry, AuditLog
from tunesmith.record.database import Database


@pytest.fixture
def log(home, monkeypatch):
    """An audit log with 60 entries, all but the last by one key."""
    monkeypatch.delenv("TUNESMITH_DATABASE_URL", raising=False)
    database = Database.from_environment(home)
    database.migrate()
    access = Access(database)
    access.ensure_default_project()
    key = access.create_key("nightly job", DEFAULT_PROJECT)[0].id
    route, target = "/v1/files/{file_id}", "file-1"
    entries = [
        AuditEntry(1_700_000_000 + n, key, DEFAULT_PROJECT, "DELETE", route, target, 200, f"req_{n}") for n in range(59)
    ]
    AuditLog(database).add([*entries, AuditEntry(1_700_000_059, None, None, "G\x1bET", None, None, 401, "req_59")])
    yield AuditLog(database)
    database.close()


def asked(capsys, *arguments):
    assert run(["audit", *arguments, "--json"]) == 0
    return [entry["request_id"] for entry in json.loads(capsys.readouterr().out)["entries"]]


def test_the_newest_or_what_follows_a_place(log, capsys):
    everything = [f"req_{n}" for n in range(60)]
    assert asked(capsys) == everything[-50:]
    assert asked(capsys, "--limit", "2") == everything[-2:]
    assert asked(capsys, "--after", "0", "--limit", "3") == everything[:3]
    places = [entry.seq for entry in log.read(limit=60)]
    assert asked(capsys, "--after", str(places[56])) == everything[57:]
    assert asked(capsys, "--after", str(places[-1])) == []


def test_it_is_a_table(log, capsys):
    assert run(["audit", "--limit", "2"]) == 0
    header, by_key, by_nobody = capsys.readouterr().out.splitlines()
    assert header.split() == ["place", "UTC", "key", "status", "request", "of", "request", "id"]
    assert "nightly job" in by_key and "DELETE /v1/files/{file_id}" in by_key and by_key.endswith("req_58")
    assert "2023-11-14 22:14:19" in by_nobody and "401" in by_nobody and "\x1b" not in by_nobody


def test_an_empty_log_is_said_to_be_one(home, monkeypatch, capsys):
    monkeypatch.delenv("TUNESMITH_DATABASE_URL", raising=False)
    assert asked(capsys) == []
    assert run(["audit"]) == 0
    assert capsys.readouterr().out == "Nothing is in the audit log.\n"
