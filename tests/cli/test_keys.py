"""`tunesmith keys`: when keys expire, as it is asked for and as it is shown."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime

import pytest
from sqlalchemy import update

from tunesmith.cli.main import run
from tunesmith.record.database import Database
from tunesmith.record.tables import keys


@pytest.fixture
def command(home, monkeypatch, capsys):
    """Runs a command; returns its JSON."""
    monkeypatch.delenv("TUNESMITH_DATABASE_URL", raising=False)

    def call(*arguments, code=0):
        assert run([*arguments, "--json"]) == code
        return json.loads(capsys.readouterr().out)

    return call


@pytest.mark.parametrize(("given", "seconds"), [("12h", 12 * 3600), ("30d", 30 * 86_400), ("4w", 28 * 86_400)])
def test_a_key_expires_after_a_while(command, given, seconds):
    made = command("keys", "create", "short", "--expires", given)
    assert abs(made["expires_at"] - time.time() - seconds) < 60
    assert command("keys", "list")["keys"][0]["expires_at"] == made["expires_at"]


def test_a_key_expires_at_a_time(command):
    year = datetime.now(UTC).year + 1
    moment = datetime(year, 1, 31, 18, tzinfo=UTC)
    for given in (f"{year}-01-31T18:00", f"{year}-01-31T18:00Z", f"{year}-01-31T20:00+02:00"):
        assert command("keys", "create", given, "--expires", given)["expires_at"] == moment.timestamp()
    assert command("keys", "create", "for ever")["expires_at"] is None


@pytest.mark.parametrize("given", ["", "soon", "30", "0d", "2020-01-31", "9999-01-01", "999999w", "-1d", "30 d"])
def test_what_is_no_time_to_come_is_refused(command, given):
    error = command("keys", "create", "x", "--expires", given, code=2)["error"]
    assert (error["code"], error["param"]) == ("invalid_expiry", "expires")
    assert command("keys", "list") == {"keys": []}


def test_the_list_says_what_has_expired(home, command, capsys):
    for name in ("never", "over", "later"):
        command("keys", "create", name, *(() if name == "never" else ("--expires", "30d")))
    database = Database.from_environment(home)
    with database.write() as connection:
        connection.execute(update(keys).where(keys.c.name == "over").values(expires_at=int(time.time()) - 7200))
    database.close()
    assert run(["keys", "list"]) == 0
    _, never, over, later = capsys.readouterr().out.splitlines()
    assert never.split()[-2:] == ["never", "never"] and "expired 2 h ago" in over and "UTC" in later
