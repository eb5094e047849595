"""`tunesmith runs`: what was trained, and how it went."""

from __future__ import annotations

from typing import Annotated, Any

import typer
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
    if found:
        rows = [
            (
                Text(run.id, style="name"),
                Text(run.state, style=_COLOURS[run.state]),
                ago(run.created),
                run.model or run.error or "–",
            )
            for run in found
        ]
        screen.listing(rows, header=("run", "state", "begun", "came to"))
    else:
        screen.result(Text("No runs yet. `tunesmith tune DATA` makes one, `tunesmith demo` too."))
    screen.finish({"runs": [run.to_json() for run in found]})


@app.command("show")
def show_run(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run's id, or its beginning.")], json: Json = False
) -> None:
    """Show one run: its state, its folder, what came of it."""
    screen = Screen(json=json)
    folder = api.find_run(run)
    values: dict[str, Any] = folder.view().to_json()
    shown = {name: str(value) for name, value in values.items() if value is not None}
    shown["created"] = f"{shown['created']} ({ago(shown['created'])})"
    colours = {"id": "name", "state": _COLOURS.get(values["state"], "")}
    screen.listing(
        [(Text(name, style="faint"), Text(value, style=colours.get(name, ""))) for name, value in shown.items()]
    )
    if values["state"] in ("interrupted", "failed"):
        screen.result(Text(f"Continue with: tunesmith tune --resume {values['id']}"))
    screen.finish({**values, "spec": folder.spec().model_dump(mode="json")})
