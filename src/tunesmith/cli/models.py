"""`tunesmith models`: the tuned models on this machine."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from tunesmith.cli.engine_room import api
from tunesmith.cli.options import Json
from tunesmith.cli.quantities import ago
from tunesmith.cli.screen import Screen

app = typer.Typer(help="List tuned models, look at one, delete one.")

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="The ft: name, the id, the label, or the beginning of one.")
]


@app.command("list")
def list_models(json: Json = False) -> None:
    """List the tuned models, the newest first."""
    screen = Screen(json=json)
    found = api.list_models()
    table = Table(box=None, padding=(0, 2), header_style="faint")
    for name in ("model", "made", "verdict", "score", "base's"):
        table.add_column(name, overflow="fold")
    for version in found:
        tuned, base = _scores(version)
        verdict = str(version.made.summary.get("verdict", "–")).replace("_", " ")
        table.add_row(Text(version.name, style="name"), ago(version.created), verdict, tuned, base)
    screen.result(table if found else Text("No models yet. `tunesmith tune DATA` makes one, `tunesmith demo` too."))
    screen.finish({"models": [facts(version) for version in found]})


@app.command("show")
def show_model(model: ModelName, json: Json = False) -> None:
    """Show one model: where it is, what it was made from, how it did."""
    screen = Screen(json=json)
    version = api.find_model(model)
    table = Table(box=None, padding=(0, 2), show_header=False)
    table.add_column(style="faint")
    table.add_column(overflow="fold")
    table.add_row("model", Text(version.name, style="name"))
    table.add_row("made", f"{ago(version.created)}, by run {version.made.run}")
    table.add_row("base", Text(version.made.base))
    table.add_row("folder", Text(str(version.folder)))
    if sentence := version.made.summary.get("sentence"):
        table.add_row("verdict", Text(str(sentence)))
    screen.result(table)
    screen.finish(facts(version))


@app.command("delete")
def delete_model(
    model: ModelName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    json: Json = False,
) -> None:
    """Remove a tuned model from this machine. Its run stays."""
    screen = Screen(json=json)
    version = api.find_model(model)
    if not yes:
        typer.confirm(f"Delete {version.name}?", abort=True, err=True)
    api.delete_model(version.name)
    screen.result(Text(f"Deleted {version.name}."))
    screen.finish({"deleted": version.name})


def facts(version: Any) -> dict[str, Any]:
    """Return a model version as plain data."""
    return {
        "model": version.name,
        "id": version.id,
        "created": version.created,
        "folder": str(version.folder),
        **asdict(version.made),
    }


def _scores(version: Any) -> tuple[str, str]:
    """Return the tuned model's score and its base's as people read them."""
    evaluation = version.made.summary.get("evaluation") or {}
    scores = (evaluation.get("tuned"), evaluation.get("base"))
    tuned, base = (f"{100 * score['score']:.0f}" if score else "–" for score in scores)
    return (f"{tuned} {evaluation['measure']}" if evaluation else tuned), base
