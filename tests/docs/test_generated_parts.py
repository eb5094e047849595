"""The generated parts of docs/ are fresh, and every command has its page."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import typer
from markdown_pages import ROOT, Block, blocks_of

from tunesmith.cli.main import app
from tunesmith.specs.results import GenerateFigures, TuneFigures

_FIGURES = {"TuneFigures": TuneFigures, "GenerateFigures": GenerateFigures}


def test_generated_parts_are_fresh():
    command = [sys.executable, str(ROOT / "scripts" / "build_docs.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_command_has_its_page_and_every_page_its_command():
    commands = set(typer.main.get_command(app).commands)
    pages = {page.stem for page in (ROOT / "docs" / "commands").glob("*.md")}
    assert pages == commands
    for name in commands:
        page = (ROOT / "docs" / "commands" / f"{name}.md").read_text(encoding="utf-8")
        assert f"<!-- generated: command {name} -->" in page


@pytest.mark.parametrize("block", [block for block in blocks_of("json") if len(block.info) > 1], ids=str)
def test_examples_of_results_fit_their_schema(block: Block):
    _FIGURES[block.info[1]].model_validate(json.loads(block.text))
