"""Where a command shows things: the story on standard output, progress on standard error, JSON alone if asked for."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import to_json
from rich.console import Console, RenderableType
from rich.text import Text
from rich.theme import Theme

#: Lines longer than this are tiring to read.
_MAX_WIDTH = 100

_THEME = Theme(
    {
        "heading": "bold cyan",
        "faint": "bright_black",
        "learnt": "bold green",
        "good": "green",
        "warn": "yellow",
        "bad": "red",
        "name": "bold",
        "bar.complete": "cyan",
        "bar.finished": "green",
        "bar.back": "bright_black",
    }
)


class Screen:
    """What one command writes to.

    Attributes:
        story: for people who read along; standard error when JSON was asked for.
        progress: for what changes while one waits: standard error.
        is_live: whether progress may redraw itself; otherwise it comes in plain lines.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self.is_json = json
        self.story = _console(stderr=json, quiet=quiet)
        self.progress = _console(stderr=True, quiet=quiet)
        self._result = _console(stderr=json)
        self.is_live = self.progress.is_terminal and not self.progress.is_dumb_terminal and not quiet

    def heading(self, words: str) -> None:
        """Begin a section."""
        self.story.print()
        self.story.print(Text(words, style="heading"))

    def say(self, *lines: RenderableType) -> None:
        """Tell something; texts may carry rich's markup, so what users wrote goes in as `Text`."""
        for line in lines:
            self.story.print(line)

    def result(self, *lines: RenderableType, whole: bool = False) -> None:
        """Tell what the command came to, also when it should be quiet; `whole` lines aren't broken to fit."""
        for line in lines:
            self._result.print(line, soft_wrap=whole)

    def listing(self, rows: Sequence[Sequence[Text | str]], *, header: Sequence[str] = ()) -> None:
        """Tell a result in columns, a line for each row.

        A line longer than the terminal is wide is the terminal's to wrap: names and paths are there to be copied, and
        lines to be searched through.
        """
        lines = [[Text(cell, style="faint") for cell in header]] if header else []
        lines += [[cell if isinstance(cell, Text) else Text(cell) for cell in row] for row in rows]
        widths = [max(cell.cell_len for cell in column) for column in zip(*lines, strict=True)]
        for line in lines:
            joined = Text("  ").join([*(_padded(c, w) for c, w in zip(line[:-1], widths, strict=False)), line[-1]])
            self.result(joined, whole=True)

    def finish(self, values: Mapping[str, Any]) -> None:
        """End a command: with `--json`, its one object."""
        if self.is_json:
            print_json(values)


def printable(text: str) -> str:
    """Return text from a file or a model without control characters, which could make the terminal do anything."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else "�" for c in text)


def print_json(values: Mapping[str, Any]) -> None:
    """Write one JSON object to standard output."""
    # A loss that isn't a number becomes null: JSON has no word for it.
    sys.stdout.write(to_json(values, inf_nan_mode="null", fallback=str).decode("utf-8") + "\n")
    sys.stdout.flush()


def error_console() -> Console:
    """Return a console on standard error, for errors."""
    return _console(stderr=True)


def _padded(text: Text, width: int) -> Text:
    """Return the text with blanks to the width."""
    padded = text.copy()
    padded.append(" " * (width - text.cell_len))
    return padded


def _console(*, stderr: bool, quiet: bool = False) -> Console:
    """Return a console as wide as is good to read; texts are never recoloured by guesses."""
    console = Console(stderr=stderr, quiet=quiet, theme=_THEME, highlight=False)
    if not console.is_terminal or console.width > _MAX_WIDTH:
        console.width = _MAX_WIDTH
    return console
