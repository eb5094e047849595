"""How the command line shows errors: what, where, how to fix it; exit codes as the error tree has them."""

from __future__ import annotations

import os
import tempfile
import traceback
from datetime import datetime
from pathlib import Path
from typing import Any

import typer
from rich.box import ROUNDED
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tunesmith.cli.screen import error_console, print_json, printable
from tunesmith.errors import TunesmithError, UserError

#: Set to 1 to see the whole traceback of an internal fault.
DEBUG_VARIABLE = "TUNESMITH_DEBUG"
INTERRUPTED = 130

_PROBLEMS_SHOWN = 20


def show_error(error: TunesmithError, *, as_json: bool) -> int:
    """Show an error to a person, and with `--json` to a program; return the exit code."""
    console = error_console()
    if console.is_terminal:
        console.print(_panel(error, console))
    else:
        _print_plain(error, console)
    if as_json:
        print_json({"error": error_facts(error)})
    return error.exit_code


def show_fault(error: Exception, *, as_json: bool) -> int:
    """Show a fault of our own in one line, with the place of the whole story; return the exit code."""
    file: Path | None = None
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(error)
        story = "the traceback above"
    else:
        file = _write_traceback(error)
        story = "that file, which holds the whole story" if file else f"what {DEBUG_VARIABLE}=1 shows"
    summary = " ".join(str(error).split())[:300]
    fault = TunesmithError(
        f"Something broke inside Tunesmith: {type(error).__name__}{f': {summary}' if summary else ''}",
        where=str(file) if file else None,
        fix=f"Please report it with {story}. Your data and finished models are untouched.",
        code="internal_fault",
    )
    return show_error(fault, as_json=as_json)


def show_interruption(*, as_json: bool) -> int:
    """Say that the user stopped the command; return the exit code."""
    error_console().print("Stopped.")
    if as_json:
        print_json({"error": error_facts(TunesmithError("Stopped by the user.", code="interrupted"))})
    return INTERRUPTED


def usage_error(error: typer.TyperException) -> UserError:
    """Turn typer's complaint about the command line into an error of ours."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "tunesmith"
    return UserError(_sentence(error.format_message()), fix=f"`{command} --help` shows how it is used.", code="usage")


def error_facts(error: TunesmithError) -> dict[str, Any]:
    """Return an error as plain data, the `error` object of `--json`."""
    return {
        "message": error.message,
        "where": error.where,
        "fix": error.fix,
        "code": error.code,
        "param": error.param,
        "problems": list(error.problems),
    }


def _panel(error: TunesmithError, console: Console) -> Panel:
    """Draw an error for a terminal."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="faint", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, words in (("where", error.where), ("fix", error.fix)):
        if words:
            facts.add_row(name, Text(printable(words)))
    for i, problem in enumerate(_listed(error)):
        facts.add_row("" if i else "also", Text(printable(problem), style="faint"))
    message = Text(printable(error.message))
    parts = [message, facts] if facts.row_count else [message]
    stopped = error.exit_code == INTERRUPTED
    title, colour = ("[warn]stopped[/]", "warn") if stopped else ("[bad]error[/]", "bad")
    return Panel(
        Group(*parts), title=title, title_align="left", border_style=colour, box=ROUNDED, padding=(0, 1),
        width=console.width,
    )  # fmt: skip


def _print_plain(error: TunesmithError, console: Console) -> None:
    """Write an error in plain lines, whole however long they are."""
    lines = [f"{'stopped' if error.exit_code == INTERRUPTED else 'error'}: {error.message}"]
    lines += [f"  where: {error.where}"] if error.where else []
    lines += [f"  fix: {error.fix}"] if error.fix else []
    lines += [f"  also: {problem}" for problem in _listed(error)]
    for line in lines:
        console.print(Text(printable(line)), soft_wrap=True)


def _listed(error: TunesmithError) -> list[str]:
    """Return the further problems, the rest of a long list counted."""
    shown = list(error.problems[:_PROBLEMS_SHOWN])
    more = len(error.problems) - len(shown)
    return [*shown, *([f"... and {more:,} more."] if more else [])]


def _write_traceback(error: Exception) -> Path | None:
    """Keep the traceback in a file; None where even that fails."""
    text = "".join(traceback.format_exception(error))
    name = f"tunesmith-fault-{datetime.now():%Y%m%d-%H%M%S}-"
    try:
        with tempfile.NamedTemporaryFile("w", prefix=name, suffix=".txt", delete=False, encoding="utf-8") as file:
            file.write(text)
            return Path(file.name)
    except OSError:
        return None


def _sentence(text: str) -> str:
    """Return typer's words as one line that ends like a sentence."""
    line = " ".join(text.split())
    return line if line.endswith((".", "?", "!")) else f"{line}."
