"""Python examples marked `run` do what their page says: each page's run in order, on the embedded base."""

from __future__ import annotations

from pathlib import Path

import pytest
from markdown_pages import PAGES, ROOT, blocks


def _examples(page: Path) -> list[str]:
    """Return the marked examples, each at its own place in the page, so that an error names the line."""
    marked = [block for block in blocks(page) if block.info[:1] == ("python",) and "run" in block.info]
    return ["\n" * block.line + block.text for block in marked]


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if _examples(p)], ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_run(page: Path, home_with_base, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for example in _examples(page):
        exec(compile(example, str(page), "exec"), names)
        said = capsys.readouterr().out
        assert said.strip() or "print" not in example
