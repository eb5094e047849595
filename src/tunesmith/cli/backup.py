"""`tunesmith backup` and `tunesmith restore`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from tunesmith import __version__
from tunesmith.cli.engine_room import backup_record, database_record, restore_record, store_record
from tunesmith.cli.options import Json
from tunesmith.cli.quantities import size
from tunesmith.cli.screen import Screen
from tunesmith.errors import GateError
from tunesmith.record.home import Home

if TYPE_CHECKING:
    from tunesmith.record.backup import BackupReport

_PARTS = {"files": "content", "models": "models", "runs": "runs"}
_MISSING_SHOWN = 20


def backup(
    target: Annotated[
        Path, typer.Argument(metavar="FOLDER|FILE", help="A new folder, or a new file that ends in .tar.")
    ],
    json: Json = False,
) -> None:
    """Back up the record with everything that it needs, while the server and its jobs go on working.

    It holds keys' hashes and webhooks' secrets, so only its owner may read it. Logs and converted bases aren't in it.
    """
    screen = Screen(json=json)
    home = Home.from_environment()
    report: BackupReport = backup_record.back_up(target.absolute(), home, *_opened(home), __version__)
    screen.result(Text(f"Backed up to {target}: {_told(report)}."), whole=True)
    _complain(report, "The backup is written, but the record names what wasn't there to be backed up.")
    screen.finish({**asdict(report), "target": str(target.absolute())})


def restore(
    source: Annotated[Path, typer.Argument(metavar="FOLDER|FILE", help="What `tunesmith backup` wrote.")],
    json: Json = False,
) -> None:
    """Restore a backup into an empty TUNESMITH_HOME and an empty database. Nothing that is there is ever replaced.

    Jobs that were running when the backup was made go on from their newest checkpoint once a worker starts.
    """
    screen = Screen(json=json)
    home = Home.from_environment()
    report: BackupReport = restore_record.restore(source.absolute(), home, *_opened(home))
    screen.result(Text(f"Restored: {_told(report)}."), whole=True)
    _complain(report, "The backup is restored, but content was missing already when it was made.")
    screen.finish(asdict(report))


def _opened(home: Home) -> tuple[Any, Any]:
    return database_record.Database.from_environment(home), store_record.Store.from_environment(home)


def _told(report: BackupReport) -> str:
    counts = [f"{report.files[part]:,} of {what}" for part, what in _PARTS.items() if part in report.files]
    files = f" and its files ({', '.join(counts)})" if counts else ""
    return f"the record{files}, {size(report.bytes)} in all"


def _complain(report: BackupReport, words: str) -> None:
    """End with exit code 3 when something is missing, so that a nightly script notices.

    Raises:
        GateError: something is.
    """
    if report.missing:
        raise GateError(
            words,
            where="the record",
            fix="Delete the files and models that are named, or bring their content back from an earlier backup.",
            code="content_missing",
            problems=report.missing[:_MISSING_SHOWN],
        )
