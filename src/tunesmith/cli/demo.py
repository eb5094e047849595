"""`tunesmith demo`: the whole path on real rows that come with the package, told step by step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

from tunesmith.cli.engine_room import api, arms
from tunesmith.cli.options import Json, Quiet, nested, takes_settings
from tunesmith.cli.quantities import duration
from tunesmith.cli.screen import Screen
from tunesmith.cli.show_result import show_arms, show_client, show_next, show_side_by_side, show_verdict
from tunesmith.cli.tune import chosen_rows
from tunesmith.cli.watch import Watcher
from tunesmith.data.examples import Conversation
from tunesmith.demo import prompts
from tunesmith.specs.tune import TuneSpec

if TYPE_CHECKING:
    from tunesmith.api import TuneResult
    from tunesmith.evaluate.arms import Arm

#: What each step of the demo is called, and what a beginner should know about it.
_STEPS = {
    "data": (
        "1  The data",
        """A model learns from examples of what it should answer. These are messages that people wrote to restaurants,
        each with its booking details as JSON. Some rows are set aside: the model never learns from them, so they show
        later whether it has really learnt something.""",
    ),
    "row": (
        "2  One row as the model sees it",
        """A model reads and writes tokens, which are pieces of words. It learns only to write the answer; the question
        is there to be read.""",
    ),
    "plan": (
        "3  The plan",
        """The base model stays as it is. A small adapter beside it is trained: that needs little memory and little
        time.""",
    ),
    "untuned": (
        "4  Before: the base model, asked as well as one can",
        """Is training needed at all? First the base gets a long, careful prompt; then the same prompt with solved
        examples. It answers every test row, and an answer counts only if its JSON is exactly right.""",
    ),
    "training": (
        "5  Training",
        """The loss says how surprised the model is by the right answers: lower is better. The validation loss is the
        same on rows that it doesn't learn from; the weights with the lowest one are kept.""",
    ),
    "tuned": (
        "6  After: the tuned model, asked in one line",
        """The same test rows, now with the short prompt that stands in the data: what had to be explained before is
        learnt by now.""",
    ),
    "verdict": (
        "7  The verdict",
        """A score on a few hundred rows is never certain, so each comes with the interval in which the true one lies
        95 times out of 100. The verdict compares the answers row by row.""",
    ),
    "use": (
        "8  Use it",
        """The model is kept on this machine. `tunesmith serve` answers behind the API that programs already call:""",
    ),
}


@takes_settings(TuneSpec, {"base": "--base", "optimisation.epochs": "--epochs"}, panel="Settings")
def demo(settings: dict[str, Any], json: Json = False, quiet: Quiet = False) -> None:
    """Show the whole path on real rows that come with Tunesmith, in about five minutes and without a network.

    Data, plan, the base measured, training, the tuned model measured, the verdict, and how to use the model.
    """
    spec = TuneSpec.parse(nested(settings, prompts.settings()))
    screen = Screen(json=json, quiet=quiet)
    started = time.monotonic()
    screen.say(Text("From a file of examples to a specialist model, on this machine.", style="name"))
    with Watcher(screen, on_section=lambda name: tell(screen, name)) as watcher:
        # Splitting is stable: the run below sets the same rows aside, so no example shown in a prompt is a test row.
        train = api.check(spec.data).prepared.train
        result = api.tune(spec, observer=watcher, untuned=better_ways_to_ask(train))
    tell(screen, "verdict")
    show_arms(screen, result.arms)
    screen.say("", Text("Some test rows side by side, wrong answers among them:", style="faint"), "")
    show_side_by_side(screen, chosen_rows(result))
    show_verdict(screen, result.verdict)
    tell(screen, "use")
    show_client(screen, result.figures.model, system=result.system_prompt, question=prompts.QUESTION)
    screen.say("")
    show_next(screen, result.figures.model, run_folder=result.figures.run, report=result.report)
    seconds = time.monotonic() - started
    screen.say(
        "", Text(f"All of this took {duration(seconds)}. Now try your own file: tunesmith tune FILE", style="faint")
    )
    screen.finish(demo_figures(result, seconds))


def better_ways_to_ask(train: Sequence[Conversation]) -> list[Arm]:
    """Return what can be had without training: a long, careful prompt, and solved training rows after it."""
    shown = arms.choose_examples(train, prompts.EXAMPLES)
    careful = prompts.CAREFUL_PROMPT
    return [
        arms.with_system_prompt(
            "the base with a careful prompt", "the untuned base with a long, careful prompt", careful
        ),
        arms.with_examples(
            f"the base with {len(shown)} examples",
            f"the untuned base with the careful prompt and {len(shown)} solved training rows",
            shown,
            system=careful,
        ),
    ]


def tell(screen: Screen, name: str) -> None:
    """Begin a step of the demo with a few plain words about it."""
    heading, words = _STEPS[name]
    screen.heading(heading)
    screen.say(Text(" ".join(words.split()), style="faint"), "")


def demo_figures(result: TuneResult, seconds: float) -> dict[str, Any]:
    """Return what `tunesmith demo --json` ends with."""
    figures = result.figures.model_dump()
    return {
        **{name: figures[name] for name in ("model", "run", "data", "train")},
        "arms": [{name: value for name, value in arm.to_json().items() if name != "row_scores"} for arm in result.arms],
        **{name: figures[name] for name in ("verdict", "sentence")},
        "seconds": round(seconds, 1),
    }
