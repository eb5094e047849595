"""`tunesmith check`: what is in a file, what is wrong with it, what would be learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from tunesmith.cli.engine_room import api
from tunesmith.cli.options import Json, Quiet, takes_settings
from tunesmith.cli.quantities import plural
from tunesmith.cli.reading import DATA_FLAGS, Asked, Assigned, Data, DropBad, Mapped, data_spec
from tunesmith.cli.screen import Screen
from tunesmith.cli.show_data import show_content, show_counts, show_findings, show_recognition, show_tokens
from tunesmith.specs.tune import TuneSpec


@takes_settings(TuneSpec, DATA_FLAGS, panel="Settings")
def check(
    settings: dict[str, Any],
    data: Data = None,
    base: Annotated[
        str | None, typer.Option(help="Show one row as this base sees it, and measure lengths in its tokens.")
    ] = None,
    fix: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Write the usable rows to this file as chat JSONL.")
    ] = None,
    mapping: Mapped = [],  # noqa: B006  (typer copies it)
    assignments: Assigned = [],  # noqa: B006
    drop_bad_rows: DropBad = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what is in a file of examples and what is wrong with it. Nothing is trained."""
    # A clean copy can only be made by leaving the broken rows out.
    asked = Asked(data, None, mapping, assignments, drop_bad_rows or fix is not None)
    spec = data_spec(asked, settings)
    screen = Screen(json=json, quiet=quiet)
    result = api.check(spec, base=base)
    screen.heading("The data")
    show_recognition(screen, result.report)
    show_counts(screen, result.report)
    show_content(screen, result.report)
    show_findings(screen, result.report)
    if result.preview is not None:
        screen.heading("One row as the model sees it")
        show_tokens(screen, result.preview.tokens)
    unit = "document" if result.report["format"] == "documents" else "row"
    written = None
    if fix is not None:
        written = api.write_clean(spec, fix)
        screen.result(Text(f"{plural(written, f'usable {unit}')} written to {fix}."))
    else:
        screen.result(Text(f"Ready to learn from: {plural(result.report['train'], unit)}."))
    preview = [list(token) for token in result.preview.tokens] if result.preview is not None else None
    screen.finish({**result.report, "tokens": preview, "written": written})
