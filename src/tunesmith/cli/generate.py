"""`tunesmith generate`: answers to a file of prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from tunesmith.cli.engine_room import api
from tunesmith.cli.forms import Choices, GrammarFile, JsonObject, JsonSchemaFile, Regex, form_settings
from tunesmith.cli.options import Json, Quiet, takes_settings
from tunesmith.cli.quantities import duration, plural
from tunesmith.cli.screen import Screen
from tunesmith.cli.watch import Watcher
from tunesmith.specs.generation import SamplingSpec
from tunesmith.specs.serving import Backend

#: Options of every command that samples.
SAMPLING_FLAGS = {
    "temperature": "--temperature",
    "top_p": "--top-p",
    "top_k": "--top-k",
    "min_p": "--min-p",
    "presence_penalty": "--presence-penalty",
    "frequency_penalty": "--frequency-penalty",
    "repetition_penalty": "--repetition-penalty",
    "max_completion_tokens": "--max-completion-tokens",
    "stop": "--stop",
    "seed": "--seed",
}


@takes_settings(
    SamplingSpec,
    {**SAMPLING_FLAGS, "n": "--n", "logprobs": "--logprobs", "top_logprobs": "--top-logprobs"},
    panel="Sampling",
)
def generate(
    settings: dict[str, Any],
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A tuned model (ft: name, id, label) or a base.")],
    source: Annotated[Path, typer.Option("--input", metavar="FILE", help="The prompts: texts, messages, or rows.")],
    output: Annotated[Path, typer.Option("--output", metavar="FILE", help="Where the answers go, in the same order.")],
    system: Annotated[str | None, typer.Option(help="A system prompt for prompts that have none.")] = None,
    json_schema: JsonSchemaFile = None,
    json_object: JsonObject = False,
    regex: Regex = None,
    grammar: GrammarFile = None,
    choice: Choices = None,
    backend: Annotated[
        Backend,
        typer.Option(
            metavar="torch|vllm", help="What computes: Tunesmith's engine, or vLLM in an environment of its own."
        ),
    ] = "torch",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Answer a file of prompts. Run the same command again to go on where it was stopped."""
    form = form_settings(json_schema, json_object, regex, grammar, choice)
    sampling = SamplingSpec.parse({**settings, **form})
    screen = Screen(json=json, quiet=quiet)
    with Watcher(screen) as watcher:
        figures = api.generate_file(
            model, source, output, sampling=sampling, system=system, observer=watcher, backend=backend
        )
    screen.result(
        Text(
            f"{plural(figures.requests, 'answer')} with {plural(figures.output_tokens, 'token')} in "
            f"{duration(figures.seconds)} ({figures.tokens_per_second:,.0f} tokens/s), in {output}."
        )
    )
    if figures.failed:
        screen.say(Text.assemble(("! ", "warn"), f"{plural(figures.failed, 'answer')} broke off; see `error` there."))
    screen.finish(figures.model_dump())
