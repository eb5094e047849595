"""`tunesmith keys`: who may use the server."""

from __future__ import annotations

import re
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from tunesmith.cli.engine_room import access_record, database_record
from tunesmith.cli.options import Json
from tunesmith.cli.quantities import ago
from tunesmith.cli.screen import Screen
from tunesmith.errors import RequestError
from tunesmith.record.home import Home

if TYPE_CHECKING:
    from tunesmith.record.access import Access, Key

_SECONDS = {"h": 3600, "d": 86_400, "w": 7 * 86_400}

app = typer.Typer(help="Make, list and revoke the keys that callers of the server send.")


@app.command("create")
def create_key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the key is for, in your own words.")],
    project: Annotated[
        str | None,
        typer.Option(
            "--project",
            metavar="NAME",
            help="Project whose files, jobs and models the key opens; a new name makes a new one. (default: default)",
        ),
    ] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option("--requests-per-minute", min=1, help="Most requests in a minute. (default: no limit)")
    ] = None,
    tokens_per_day: Annotated[
        int | None,
        typer.Option(
            "--tokens-per-day", min=1, help="Most tokens of prompts and answers in a day, UTC. (default: no limit)"
        ),
    ] = None,
    admin: Annotated[
        bool, typer.Option("--admin", help="Make an admin key, which may also share models among projects.")
    ] = False,
    expires: Annotated[
        str | None,
        typer.Option(
            "--expires",
            metavar="WHEN",
            help="When it stops working: after so many hours, days or weeks (12h, 30d, 4w), or at a time in UTC "
            "(2027-01-31, 2027-01-31T18:00). (default: never)",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Make a key and show it, this once. From the first key on the server asks every caller for one."""
    screen = Screen(json=json)
    expires_at = None if expires is None else _moment(expires)
    access = _access()
    found = access.find_project(project or access_record.DEFAULT_PROJECT)
    is_new = found is None
    if found is None:
        assert project is not None, "the default project is always there"
        found = access.create_project(project)
    limits = access_record.KeyLimits(requests_per_minute, tokens_per_day)
    key, secret = access.create_key(name, found.id, limits, is_admin=admin, expires_at=expires_at)
    if not json:  # standard error, where the story then goes, often ends up in a log
        screen.result(Text(secret, style="name"), whole=True)
    if is_new:
        screen.say(Text(f"Made the project {found.name} ({found.id}).", style="faint"))
    screen.say(Text("Keep it now: it isn't shown again, and nobody can find it out.", style="warn"))
    screen.finish({**facts(key), "secret": secret, "is_new_project": is_new})


@app.command("list")
def list_keys(
    with_revoked: Annotated[bool, typer.Option("--all", help="Show revoked keys too.")] = False,
    json: Json = False,
) -> None:
    """List the keys, the oldest first. Of their secrets only the beginning is known."""
    screen = Screen(json=json)
    found = _access().keys(with_revoked=with_revoked)
    if found:
        rows = [
            (Text(key.name, style="name"), key.id, f"{key.hint}…", _opens(key), _limits(key), _end(key), _use(key))
            for key in found
        ]
        screen.listing(rows, header=("name", "id", "begins", "project", "limits", "expires", "used"))
    else:
        screen.result(Text("No keys. `tunesmith keys create NAME` makes one."))
    screen.finish({"keys": [facts(key) for key in found]})


@app.command("revoke")
def revoke_key(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Its id, its name, or the beginning of its secret or id.")],
    json: Json = False,
) -> None:
    """Make a key useless, for good. When the command ends, no server takes the key any more."""
    screen = Screen(json=json)
    revoked = _access().revoke_key(key)
    # Servers believe what they have read for so long.
    time.sleep(access_record.REVOCATION_SECONDS)
    screen.result(Text(f"Revoked {revoked.name} ({revoked.id})."))
    screen.finish(facts(revoked))


def facts(key: Key) -> dict[str, Any]:
    """Return a key as plain data; its secret isn't part of it."""
    return asdict(key)


def _access() -> Access:
    database = database_record.Database.from_environment(Home.from_environment())
    database.migrate()
    access: Access = access_record.Access(database)
    access.ensure_default_project()
    return access


def _moment(text: str) -> int:
    """Return the Unix seconds of a time, or of a while from now on.

    Raises:
        RequestError: it is neither.
    """
    if found := re.fullmatch(r"(\d{1,6})([hdw])", text):
        return int(time.time()) + int(found[1]) * _SECONDS[found[2]]
    try:
        moment = datetime.fromisoformat(text)
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        raise RequestError(
            f"'{text[:100]}' is no time.",
            where="--expires",
            fix="Write 12h, 30d or 4w, or a time in UTC such as 2027-01-31 or 2027-01-31T18:00.",
            code="invalid_expiry",
            param="expires",
        ) from None


def _end(key: Key) -> str:
    if key.expires_at is None:
        return "never"
    if key.expires_at <= time.time():
        return f"expired {_ago(key.expires_at)}"
    return f"{datetime.fromtimestamp(key.expires_at, UTC):%Y-%m-%d %H:%M} UTC"


def _opens(key: Key) -> str:
    return f"{key.project_name} (admin)" if key.is_admin else key.project_name


def _limits(key: Key) -> str:
    limits = [
        f"{count:,} {what}"
        for count, what in (
            (key.limits.requests_per_minute, "requests/min"),
            (key.limits.tokens_per_day, "tokens/day"),
        )
        if count is not None
    ]
    return ", ".join(limits) or "–"


def _use(key: Key) -> str:
    if key.revoked_at is not None:
        return f"revoked {_ago(key.revoked_at)}"
    return "never" if key.last_used_at is None else _ago(key.last_used_at)


def _ago(unix_seconds: int) -> str:
    return ago(datetime.fromtimestamp(unix_seconds, UTC).isoformat())
