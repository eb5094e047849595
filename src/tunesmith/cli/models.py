"""`tunesmith models`: the tuned models on this machine."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from tunesmith.cli.engine_room import api
from tunesmith.cli.options import Json
from tunesmith.cli.quantities import ago
from tunesmith.cli.screen import Screen

if TYPE_CHECKING:
    from tunesmith.models.versions import ModelVersion

app = typer.Typer(help="List tuned models, look at one, delete one.")

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="The ft: name, the id, the label, or the beginning of one.")
]


@app.command("list")
def list_models(json: Json = False) -> None:
    """List the tuned models, the newest first."""
    screen = Screen(json=json)
    found = api.list_models()
    if found:
        rows = [
            (Text(version.name, style="name"), ago(version.created), _scores(version), _verdict(version)["kind"])
            for version in found
        ]
        screen.listing(rows, header=("model", "made", "tuned, base", "verdict"))
    else:
        screen.result(Text("No models yet. `tunesmith tune DATA` makes one, `tunesmith demo` too."))
    screen.finish({"models": [facts(version) for version in found]})


@app.command("show")
def show_model(model: ModelName, json: Json = False) -> None:
    """Show one model: where it is, what it was made from, how it did."""
    screen = Screen(json=json)
    version = api.find_model(model)
    rows = (
        ("model", version.name),
        ("id", version.id),
        ("made", f"{ago(version.created)}, by run {version.made.run}"),
        ("base", version.made.base),
        ("folder", str(version.folder)),
        ("scores", _scores(version)),
        ("verdict", _verdict(version)["sentence"]),
    )
    screen.listing(
        [(Text(name, style="faint"), Text(value, style="name" if name == "model" else "")) for name, value in rows]
    )
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


def facts(version: ModelVersion) -> dict[str, Any]:
    """Return a model version as plain data."""
    return {
        "model": version.name,
        "id": version.id,
        "created": version.created,
        "folder": str(version.folder),
        **asdict(version.made),
    }


def _verdict(version: ModelVersion) -> dict[str, str]:
    """Return the verdict's kind in words, and its sentence."""
    verdict = version.made.summary.get("verdict") or {}
    return {"kind": str(verdict.get("kind", "–")).replace("_", " "), "sentence": str(verdict.get("sentence", "–"))}


def _scores(version: ModelVersion) -> str:
    """Return the tuned model's score and the best untuned one's: `86, 14 (exact match)`."""
    evaluation = version.made.summary.get("evaluation")
    if not evaluation:
        return "–"
    tuned, base = (
        f"{100 * score['score']:.0f}" if score else "–" for score in (evaluation["tuned"], evaluation["base"])
    )
    return f"{tuned}, {base} ({evaluation['measure']})"
