"""What a run will do and what came of it: the plan, the scores with their intervals, rows side by side, the verdict."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any

from rich.box import ROUNDED, SIMPLE_HEAD
from rich.console import Group
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from tunesmith.cli.quantities import amount, duration, plural, size
from tunesmith.cli.screen import Screen, printable

_VERDICTS = {
    "ship": ("Ship it", "good"),
    "dont_ship": ("Don't ship it", "bad"),
    "not_enough_evidence": ("Not enough evidence", "warn"),
    "tuning_not_needed": ("Tuning isn't needed", "warn"),
}
_SHOWN_CHARACTERS = 400


def show_plan(screen: Screen, plan: dict[str, Any], *, run: str | None = None) -> None:
    """Draw what will run and what it takes; `plan` is `Plan.to_json()`, `run` the id of a run that has begun."""
    share = plan["trained_parameters"] / max(1, plan["parameters"])
    table = Table(box=None, padding=(0, 2), show_header=False)
    table.add_column(style="faint")
    table.add_column()
    table.add_row("base", Text(f"{plan['base']}, {amount(plan['parameters'])} parameters", style="name"))
    table.add_row("method", f"{plan['method']} with {plan['adapter']}")
    table.add_row("trained", f"{amount(plan['trained_parameters'])} parameters ({share:.1%})")
    row = "window" if plan["method"] == "pretrain" else "row"
    tokens = f"{plan['tokens']:,} tokens; at most {plan['max_tokens']:,} in a {row}"
    table.add_row(f"{row}s", f"{plan['rows']:,} with {tokens}")
    steps = f"{plan['steps']:,} of {plural(plan['batch_size'], row)}: each {row} {_times(plan['epochs'])}"
    table.add_row("steps", steps)
    rate = plan["learning_rate"]
    table.add_row("learning rate", "looked for first" if rate == "find" else f"{rate:g} at its highest")
    table.add_row("on", f"{plan['device']}, in {plan['dtype']}")
    table.add_row("memory", f"about {size(plan['memory_bytes'])}")
    table.add_row("time", f"about {duration(plan['seconds'])} of training")
    if run is not None:
        table.add_row("run", Text(run))
    screen.say(table)


def show_arms(screen: Screen, arms: Sequence[Any], *, confidence: float = 0.95) -> None:
    """Draw the scores of arms (`evaluate.comparison.ArmResult`), the last one the tuned model, with what they cost."""
    first = arms[0]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), header_style="faint", show_edge=False)
    is_perplexity = first.measure.kind == "perplexity"
    table.add_column(f"{first.rows:,} unseen {'passages' if is_perplexity else 'rows'}")
    for arm in arms:
        table.add_column(Text(arm.name), justify="right", style="name" if arm is arms[-1] else "")
    score = [_interval(arm.score_as_read, arm.measure) for arm in arms]
    table.add_row(f"{first.measure.name}, {confidence:.0%} interval", *score)
    for name in first.secondary:
        shares = name not in ("loss on the reference", "bits per byte")
        table.add_row(name, *(_value(arm.secondary[name].value, is_share=shares) for arm in arms), style="faint")
    for field in first.fields:
        f1 = [next((item.f1 for item in arm.fields if item.path == field.path), None) for arm in arms]
        cells = ["–" if value is None else f"{100 * value:.0f}" for value in f1]
        table.add_row(f"  F1 of {field.path}", *cells, style="faint")
    if not is_perplexity:
        table.add_section()
        table.add_row("tokens of a prompt", *(f"{arm.cost.mean_prompt_tokens:,.0f}" for arm in arms))
        table.add_row("seconds a request, many at once", *(f"{arm.cost.mean_seconds:.2f}" for arm in arms))
    screen.say(table)


def show_verdict(screen: Screen, verdict: Any) -> None:
    """Draw the verdict (`evaluate.verdict.Verdict`) with its reasons."""
    title, colour = _VERDICTS[verdict.kind]
    reasons = [Text(reason, style="faint") for reason in verdict.reasons]
    screen.result(
        Panel(
            Group(Text(verdict.sentence), *reasons),
            title=f"[{colour}]{title}[/]",
            title_align="left",
            border_style=colour,
            box=ROUNDED,
            padding=(0, 1),
        )
    )


def show_side_by_side(screen: Screen, rows: Sequence[Any]) -> None:
    """Draw rows (`evaluate.side_by_side.ShownRow`) with the right answer and every arm's."""
    for row in rows:
        table = Table.grid(padding=(0, 1), pad_edge=True)
        table.add_column(style="faint", no_wrap=True)
        table.add_column()
        table.add_column(overflow="fold")
        for role, words in row.prompt:
            table.add_row(role, "", _words(words))
        table.add_row("right" if row.prompt else "passage", "", _words(row.reference, "name"))  # a text answers nothing
        for answer in row.answers:
            right = Text("✓", style="good") if answer.score >= 1.0 else Text("✗", style="bad")
            mark = right if row.prompt else Text("")
            table.add_row(answer.arm, mark, _words(answer.text))
        screen.say(table, "")


def show_next(screen: Screen, model: str, *, run_folder: Any = None, report: Any = None) -> None:
    """Say the model's name, where everything is, and what to do now."""
    chat = f"tunesmith chat {shlex.quote(model)}"
    places = [(name, path) for name, path in (("run", run_folder), ("report", report)) if path is not None]
    rows = [("model", Text(model, style="name")), *((name, Text(str(path))) for name, path in places)]
    rows += [("talk to it", Text(chat)), ("serve it", Text("tunesmith serve"))]
    screen.listing([(Text(name, style="faint"), value) for name, value in rows])


def show_client(
    screen: Screen,
    model: str,
    *,
    address: str = "http://127.0.0.1:8000",
    key: str = "none",
    system: str | None = None,
    question: str = "Hello!",
) -> None:
    """Show the five lines of Python that call a served model with the `openai` package."""
    instructions = [{"role": "system", "content": system}] if system is not None else []
    lines = (
        "from openai import OpenAI",
        f"client = OpenAI(base_url={quoted(f'{address}/v1')}, api_key={quoted(key)})",
        f"messages = {quoted([*instructions, {'role': 'user', 'content': question}])}",
        f"answer = client.chat.completions.create(model={quoted(model)}, messages=messages)",
        "print(answer.choices[0].message.content)",
    )
    code = "\n".join(lines)
    # Whole lines here too.
    text = Syntax("", "python", theme="ansi_dark").highlight(code) if screen.story.is_terminal else Text(code)
    text.rstrip()
    screen.story.print(text, soft_wrap=True)


def quoted(value: Any) -> str:
    """Return texts, and lists and objects of them, as Python writes them, in double quotes."""
    return json.dumps(value, ensure_ascii=False)


def _interval(interval: Any, measure: Any) -> str:
    """Return `86 % (81 to 90)`, or `45.1 (43.0 to 47.2)` for graded scores and perplexities."""
    digits, unit = (0, " %") if measure.is_binary else (1, "")
    factor = 1 if measure.kind == "perplexity" else 100
    value, low, high = (f"{factor * number:.{digits}f}" for number in (interval.value, interval.low, interval.high))
    return f"{value}{unit} ({low} to {high})"


def _value(value: float, *, is_share: bool) -> str:
    return f"{100 * value:.0f}" if is_share else f"{value:.3f}"


def _words(text: str, style: str = "") -> Text:
    shown = text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]} …"
    return Text(printable(shown) or "(nothing)", style=style if shown else "faint")


def _times(epochs: float) -> str:
    return {1.0: "once", 2.0: "twice"}.get(float(epochs), f"{epochs:g} times")
