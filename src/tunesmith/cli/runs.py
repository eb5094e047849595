"""`tunesmith runs`: what was trained, and how it went."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from tunesmith.cli.engine_room import api
from tunesmith.cli.options import Json
from tunesmith.cli.quantities import ago
from tunesmith.cli.screen import Screen

app = typer.Typer(help="List runs and look at one.")

_COLOURS = {"running": "heading", "succeeded": "good", "interrupted": "warn", "failed": "bad"}


@app.command("list")
def list_runs(json: Json = False) -> None:
    """List the runs, the newest first."""
    screen = Screen(json=json)
    found = api.list_runs()
    table = Table(box=None, padding=(0, 2), header_style="faint")
    for name in ("run", "state", "begun", "base", "model"):
        table.add_column(name, overflow="fold")
    for run in found:
        state = Text(run.state, style=_COLOURS[run.state])
        table.add_row(Text(run.id, style="name"), state, ago(run.created), Text(run.base), Text(run.model or "–"))
    screen.result(table if found else Text("No runs yet. `tunesmith tune DATA` makes one, `tunesmith demo` too."))
    screen.finish({"runs": [run.to_json() for run in found]})


@app.command("show")
def show_run(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run's id, or its beginning.")], json: Json = False
) -> None:
    """Show one run: its state, its folder, what came of it."""
    screen = Screen(json=json)
    folder = api.find_run(run)
    values: dict[str, Any] = folder.view().to_json()
    table = Table(box=None, padding=(0, 2), show_header=False)
    table.add_column(style="faint")
    table.add_column(overflow="fold")
    for name, value in values.items():
        if value is not None:
            style = _COLOURS.get(str(value), "") if name == "state" else ""
            table.add_row(name, Text(f"{value} ({ago(value)})" if name == "created" else str(value), style=style))
    screen.result(table)
    if values["state"] in ("interrupted", "failed"):
        screen.result(Text(f"Continue with: tunesmith tune --resume {values['id']}"))
    screen.finish({**values, "spec": folder.spec().model_dump(mode="json")})
