"""`tunesmith tune`: learn from a file of examples, prove it, register it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from tunesmith.cli.engine_room import api, side_by_side
from tunesmith.cli.options import Json, Quiet, takes_settings
from tunesmith.cli.reading import DATA_FLAGS, TUNE_FLAGS, Asked, Assigned, Data, DropBad, Mapped, SpecFile, tune_spec
from tunesmith.cli.screen import Screen
from tunesmith.cli.show_result import show_arms, show_next, show_side_by_side, show_verdict
from tunesmith.cli.watch import Watcher
from tunesmith.errors import SpecError
from tunesmith.specs.tune import TuneSpec

if TYPE_CHECKING:
    from tunesmith.api import TuneResult
    from tunesmith.evaluate.side_by_side import ShownRow

_ROWS_SHOWN = 5


@takes_settings(TuneSpec, {"name": "--name", **TUNE_FLAGS, **DATA_FLAGS}, panel="Settings")
def tune(
    settings: dict[str, Any],
    data: Data = None,
    spec_file: SpecFile = None,
    resume: Annotated[str | None, typer.Option(metavar="RUN", help="Go on with a run that was stopped.")] = None,
    mapping: Mapped = [],  # noqa: B006  (typer copies it)
    assignments: Assigned = [],  # noqa: B006
    drop_bad_rows: DropBad = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Learn from a file of examples; measure before and after on rows set aside; register the model.

    For example: `tunesmith tune examples.jsonl`

    Other columns: `tunesmith tune rows.csv --map input=question --map output=answer --system "Answer briefly."`
    """
    asked = Asked(data, spec_file, mapping, assignments, drop_bad_rows)
    if resume is not None and not (asked.is_empty and not settings):
        raise SpecError(
            "A run that is resumed keeps its data and its settings.",
            where=f"--resume {resume}",
            fix="Give --resume alone, or leave it out to start a new run.",
            code="resume_with_settings",
        )
    spec = None if resume is not None else tune_spec(asked, settings)
    screen = Screen(json=json, quiet=quiet)
    with Watcher(screen) as watcher:
        result = api.tune(spec, observer=watcher) if spec else api.resume(str(resume), observer=watcher)
    show_tuned(screen, result)
    screen.finish(result.figures.model_dump())


def chosen_rows(result: TuneResult) -> list[ShownRow]:
    """Return a few test rows with every arm's answer, wrong ones among them."""
    *untuned, tuned = result.arms
    baseline = max(untuned, key=lambda arm: arm.score.value, default=None)
    return side_by_side.show_rows(
        result.test_rows, result.arms, side_by_side.pick_rows(tuned, baseline, count=_ROWS_SHOWN)
    )


def show_tuned(screen: Screen, result: TuneResult) -> None:
    """Show what a finished run came to: scores, rows side by side, the verdict, the next commands."""
    if result.arms:
        screen.heading("The proof")
        show_arms(screen, result.arms)
        screen.heading("Some test rows side by side")
        screen.say("")
        show_side_by_side(screen, chosen_rows(result))
    screen.heading("The verdict")
    show_verdict(screen, result.verdict)
    show_next(screen, result.figures.model, run_folder=result.figures.run, report=result.report)
    screen.say(Text(""))
