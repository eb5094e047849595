"""docs/benchmarks.md: one section for each benchmark, each written by its own script."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"

_HEAD = """# Benchmarks

Every number on this page was measured by a script of this repository, on the machine that its section names. `make
bench` measures again and writes the page.
"""


@dataclass(frozen=True)
class Bar:
    """Something that must be reached: what, how much was reached, and whether it is enough."""

    what: str
    reached: str
    wanted: str
    is_met: bool

    def line(self) -> str:
        """Return it as a sentence."""
        return f"{self.what}: {self.reached} (bar: {self.wanted}): {self.word()}"

    def word(self) -> str:
        """Return `met` or `missed`."""
        return "met" if self.is_met else "missed"


def bars_table(bars: Sequence[Bar]) -> list[str]:
    """Return the lines of a chapter with the table of all bars."""
    rows = [(bar.what, bar.reached, bar.wanted, bar.word()) for bar in bars]
    return ["### The bars", "", *table(("bar", "reached", "wanted", ""), rows), ""]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def spaced(sentences: Sequence[str]) -> list[str]:
    """Return sentences as paragraphs of their own."""
    return [line for sentence in sentences for line in (wrapped(sentence), "")]


def wrapped(text: str) -> str:
    """Return a paragraph in lines of at most 120 characters."""
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)


def write_section(name: str, text: str, page: Path = PAGE) -> None:
    """Put `text` into the page as the section `name`, in place of the one of that name if there is one.

    Args:
        name: a word; stands in the section's marks.
        text: Markdown, beginning with a heading of the second level.
        page: the page; made if it isn't there.
    """
    old = page.read_text(encoding="utf-8") if page.exists() else _HEAD
    begin, end = f"<!-- measured: {name} -->", f"<!-- end of {name} -->"
    section = f"{begin}\n\n{text.strip()}\n\n{end}"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    new = pattern.sub(lambda _: section, old) if pattern.search(old) else f"{old.rstrip()}\n\n{section}\n"
    page.write_text(new, encoding="utf-8")
