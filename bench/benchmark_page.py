"""docs/benchmarks.md: one section for each benchmark, each written by its own script."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"

_HEAD = """# Benchmarks

Every number on this page was measured by a script of this repository, on the machine that its section names. `make
bench` measures again and writes the page.
"""


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
