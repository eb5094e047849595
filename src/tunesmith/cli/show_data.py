"""The rows as people look at them: what was recognised, where the rows went, what is learnt token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tunesmith.cli.quantities import plural
from tunesmith.cli.screen import Screen, printable

#: Longer rows are shown with their middle left out.
_TOKENS_SHOWN = 240
_DROPPED_SHOWN = 5
_FORMS = {
    "chat": "chat messages",
    "prompt_completion": "prompts with completions",
    "alpaca": "Alpaca instructions",
    "sharegpt": "ShareGPT conversations",
    "columns": "columns",
    "documents": "documents",
}


def show_recognition(screen: Screen, report: Mapping[str, Any]) -> None:
    """Say which form the rows have, and why."""
    sources = report["sources"]
    for source in sources:
        name = f"{source['path']}: recognised as " if len(sources) > 1 else "Recognised as "
        form = _FORMS.get(source["format"], source["format"])
        screen.say(Text.assemble(printable(name), (form, "name"), (f": {source['reason']}.", "faint")))


def show_counts(screen: Screen, report: Mapping[str, Any]) -> None:
    """Draw where the rows went, then what a person should know about them."""
    table = Table(box=None, padding=(0, 2), show_header=False)
    table.add_column(justify="right", style="name")
    table.add_column()
    table.add_column(style="faint")
    unit = "documents" if report["format"] == "documents" else "rows"
    files = len(report["sources"])
    table.add_row(f"{report['rows']:,}", unit, "read from the file" if files == 1 else f"read from {files:,} files")
    told = {"train": "", "validation": "watched during training, never learnt", "test": "locked away until the end"}
    for side, what in (("train", "to learn from"), ("validation", "for validation"), ("test", "for the test")):
        size = f"{characters[side]:,} characters" if (characters := report.get("characters")) else ""
        table.add_row(f"{report[side]:,}", what, "; ".join(part for part in (size, told[side]) if part))
    if report["dropped"]:
        codes = ", ".join(f"{count:,} {code.replace('_', ' ')}" for code, count in report["dropped_by_code"].items())
        table.add_row(f"{report['dropped']:,}", "dropped", codes)
    if report.get("left_out"):
        table.add_row(f"{report['left_out']:,}", "left out", "beyond the most rows to learn from")
    if replay := report.get("replay"):
        share = f"{replay['share']:.0%} of each step, so that the base keeps what it can"
        table.add_row(f"{replay['learnt']:,}", "general rows", share)
    screen.say(table)
    if files > 1:
        _show_sources(screen, report["sources"])


def _show_sources(screen: Screen, sources: Sequence[Mapping[str, Any]]) -> None:
    """Draw what came of each file's rows."""
    columns = ("weight", "rows", "train", "validation", "test", "dropped")
    table = Table(box=None, padding=(0, 2), header_style="faint")
    table.add_column("file")
    for name in columns:
        table.add_column(name, justify="right")
    for source in sources:
        table.add_row(Text(printable(source["path"])), *(f"{source[name]:,g}" for name in columns))
    screen.say("", table)


def show_findings(screen: Screen, report: Mapping[str, Any]) -> None:
    """List what may spoil a training; say so when there is nothing."""
    is_several = len(report["sources"]) > 1 or report["format"] == "documents"
    for row in report.get("dropped_rows", ())[:_DROPPED_SHOWN]:
        place = _place(row, is_several=is_several)
        screen.say(Text(f"  dropped  {place}: {printable(row['reason'])}", style="faint"))
    more = report["dropped"] - min(_DROPPED_SHOWN, len(report.get("dropped_rows", ())))
    if more > 0 and report.get("dropped_rows"):
        screen.say(Text(f"           ... and {more:,} more", style="faint"))
    if not report["findings"]:
        screen.say(Text.assemble(("✓ ", "good"), "Nothing else to worry about."))
    for finding in report["findings"]:
        screen.say(Text.assemble(("! ", "warn"), printable(finding["message"])))
        places = finding.get("places", ())
        if places:
            listed = ", ".join(_place(place, is_several=is_several) for place in places[:3])
            screen.say(Text(f"  {listed}{' and others' if finding['count'] > 3 else ''}", style="faint"))


def show_content(screen: Screen, report: Mapping[str, Any]) -> None:
    """Draw how long the rows are and, of conversations, which answers are frequent."""
    words, answers = report["words"], report.get("answers")
    table = Table(box=None, padding=(0, 2), header_style="faint")
    table.add_column("words")
    for name in ("least", "median", "95 %", "most"):
        table.add_column(name, justify="right")
    for name, values in words.items():
        table.add_row(name, *(f"{values[key]:,.0f}" for key in ("least", "median", "p95", "most")))
    screen.say("", table)
    if answers and answers["distinct"] > 1 and answers["top"] and answers["top"][0]["rows"] > 1:
        frequent = [f"{item['text']!r} ({item['share']:.0%})" for item in answers["top"][:3] if item["rows"] > 1]
        listed = ", ".join(text if len(text) <= 60 else f"{text[:56]}...'" for text in frequent)
        screen.say(
            Text.assemble(f"{answers['distinct']:,} different answers", (f"; the most frequent: {listed}", "faint"))
        )


def show_tokens(screen: Screen, tokens: Sequence[tuple[str, bool]], *, why: str = "") -> None:
    """Draw one row as the model sees it: neighbouring tokens in two shades, learnt ones in colour."""
    learnt = sum(is_learnt for _, is_learnt in tokens)
    draw = _shaded if screen.story.is_terminal else _bracketed
    screen.say(Padding(draw(_middle_left_out(tokens)), (0, 2)))
    mark = ("in colour", "learnt") if screen.story.is_terminal else ("between « and »", "")
    screen.say(
        Text.assemble(
            f"{plural(len(tokens), 'token')}; the {learnt:,} ",
            mark,
            f" are learnt, the others only read.{f' {why}' if why else ''}",
        )
    )


def _middle_left_out(tokens: Sequence[tuple[str, bool]]) -> list[tuple[str, bool]]:
    if len(tokens) <= _TOKENS_SHOWN:
        return list(tokens)
    half = _TOKENS_SHOWN // 2
    return [*tokens[:half], (f"\n… {len(tokens) - 2 * half:,} tokens …\n", False), *tokens[-half:]]


def _shaded(tokens: Sequence[tuple[str, bool]]) -> RenderableType:
    text = Text()
    for i, (words, is_learnt) in enumerate(tokens):
        colour = "bold green" if is_learnt else "default"
        # A line end is shown, because it is a token like any other, and then obeyed.
        shown = printable(words.replace("\n", "↵"))
        text.append(shown, style=f"{colour} on {'grey19' if i % 2 else 'grey11'}")
        text.append("\n" * words.count("\n"))
    return text


def _bracketed(tokens: Sequence[tuple[str, bool]]) -> RenderableType:
    text = Text()
    inside = False
    for words, is_learnt in tokens:
        if is_learnt != inside:
            text.append("«" if is_learnt else "»")
        elif text.plain and not text.plain.endswith("\n"):
            text.append("|")
        inside = is_learnt
        text.append(printable(words.replace("\n", "↵")) + "\n" * words.count("\n"))
    if inside:
        text.append("»")
    return text


def _place(value: Mapping[str, Any], *, is_several: bool) -> str:
    """Return where a row stands, with the file's name where there are several."""
    unit = "line" if "line" in value else "row"
    return f"{printable(value['file'])}, {unit} {value[unit]:,}" if is_several else f"{unit} {value[unit]:,}"
