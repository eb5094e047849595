"""docs/data-formats.md explains every code that reading, checking and splitting can answer with, and no other."""

from __future__ import annotations

import ast
import re

from markdown_pages import ROOT

#: Where the code stands among the positional arguments of what makes a problem.
_POSITIONS = {"refuse": 3, "RowProblem": 4, "Dropped": 1, "Finding": 0, "_finding": 0}


def _text(node: ast.AST) -> set[str]:
    """Return the words that an expression may be: a text as it stands, or an f-string about one side of the split."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return {node.value}
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else "*" for part in node.values]
        return {form.replace("*", side) for side in ("test", "validation") for form in ["".join(map(str, parts))]}
    return set()


def _codes_in_source() -> set[str]:
    found: set[str] = set()
    for folder in ("data", "prepare"):
        for file in (ROOT / "src" / "tunesmith" / folder).glob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.Call):
                    continue
                for keyword in node.keywords:
                    if keyword.arg == "code":
                        found |= _text(keyword.value)
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                position = _POSITIONS.get(name)
                if position is not None and len(node.args) > position:
                    found |= _text(node.args[position])
    return found


def test_every_code_is_explained_and_every_explained_code_exists():
    page = (ROOT / "docs" / "data-formats.md").read_text(encoding="utf-8")
    section = page[page.index("## What is checked") : page.index("## The split")]
    rows = re.findall(r"^\| (`[^|]+`) \|", section, re.MULTILINE)
    explained = {code for cell in rows for code in re.findall(r"`([a-z_0-9]+)`", cell)}
    assert explained == _codes_in_source()
