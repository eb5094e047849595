"""`tunesmith audit`: who changed what, and who was refused."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from tunesmith.cli.engine_room import access_record, audit_record, database_record
from tunesmith.cli.options import Json
from tunesmith.cli.screen import Screen, printable
from tunesmith.record.home import Home

if TYPE_CHECKING:
    from tunesmith.record.audit import AuditEntry


def audit(
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="Show so many entries at most.")] = 50,
    after: Annotated[
        int | None,
        typer.Option(
            "--after",
            min=0,
            metavar="PLACE",
            help="Show what follows this place in the log; 0 is its beginning. (default: the newest entries)",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Show the audit log: requests that changed something, and refusals, in the order in which they came."""
    screen = Screen(json=json)
    database = database_record.Database.from_environment(Home.from_environment())
    database.migrate()
    log = audit_record.AuditLog(database)
    entries: list[AuditEntry] = log.newest(limit) if after is None else log.read(after=after, limit=limit)
    if entries:
        names = {key.id: key.name for key in access_record.Access(database).keys(with_revoked=True)}
        rows = [
            (
                str(entry.seq),
                f"{datetime.fromtimestamp(entry.at, UTC):%Y-%m-%d %H:%M:%S}",
                Text(printable(names.get(entry.key_id or "", entry.key_id or "–")), style="name"),
                str(entry.status),
                f"{printable(entry.method)} {entry.route or '–'}",
                printable(entry.target or "–"),
                entry.request_id,
            )
            for entry in entries
        ]
        screen.listing(rows, header=("place", "UTC", "key", "status", "request", "of", "request id"))
    else:
        screen.result(Text("Nothing is in the audit log." if not after else f"Nothing follows place {after}."))
    screen.finish({"entries": [asdict(entry) for entry in entries]})
