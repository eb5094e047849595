"""`tunesmith plan`: memory and time before anything runs."""

from __future__ import annotations

from typing import Any

from tunesmith.cli.engine_room import api
from tunesmith.cli.options import Json, Quiet, takes_settings
from tunesmith.cli.reading import DATA_FLAGS, TUNE_FLAGS, Asked, Assigned, Data, DropBad, Mapped, SpecFile, tune_spec
from tunesmith.cli.screen import Screen
from tunesmith.cli.show_result import show_plan
from tunesmith.specs.tune import TuneSpec


@takes_settings(TuneSpec, {**TUNE_FLAGS, **DATA_FLAGS}, panel="Settings")
def plan(
    settings: dict[str, Any],
    data: Data = None,
    spec_file: SpecFile = None,
    mapping: Mapped = [],  # noqa: B006  (typer copies it)
    assignments: Assigned = [],  # noqa: B006
    drop_bad_rows: DropBad = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what `tunesmith tune` would do with the same arguments: steps, memory, time. Nothing is trained."""
    spec = tune_spec(Asked(data, spec_file, mapping, assignments, drop_bad_rows), settings)
    screen = Screen(json=json, quiet=quiet)
    values = api.plan(spec).to_json()
    screen.heading("The plan")
    show_plan(screen, values)
    screen.finish(values)
