"""docs/architecture.md shows the floors that import-linter checks, and every package stands on one."""

from __future__ import annotations

import re
import tomllib

from markdown_pages import ROOT

SOURCE = ROOT / "src" / "tunesmith"
#: Data that comes with the package, used by the command of the same name alone.
NOT_A_FLOOR = {"demo"}


def _floors_on_the_page() -> list[set[str]]:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page[page.index("<!-- floors: begin") : page.index("<!-- floors: end -->")]
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| ") and "`" in line]
    return [set(re.findall(r"`(\w+)`", cells[2])) for cells in rows]


def _floors_that_are_checked() -> list[set[str]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    return [set(re.findall(r"tunesmith\.(\w+)", layer)) for layer in layers]


def test_the_page_shows_the_floors_that_are_checked():
    assert _floors_on_the_page() == _floors_that_are_checked()


def test_every_package_stands_on_a_floor():
    there = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert there - {"__init__", "__main__"} - NOT_A_FLOOR == set().union(*_floors_that_are_checked())
