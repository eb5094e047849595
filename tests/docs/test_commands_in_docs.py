"""Every `tunesmith ...` line in the docs names a command and options that exist."""

from __future__ import annotations

import shlex

import pytest
import typer
from markdown_pages import blocks_of

from tunesmith.cli.main import app


def _lines() -> list[tuple[str, str]]:
    lines = ((str(block), line) for block in blocks_of("console") for line in block.text.splitlines())
    return [(place, line.removeprefix("$ ")) for place, line in lines if line.startswith("$ ") and "tunesmith " in line]


@pytest.mark.parametrize(("place", "line"), _lines())
def test_commands_and_options_exist(place: str, line: str):
    words = shlex.split(line, comments=True)
    if "tunesmith" not in words:  # as in `git clone ... tunesmith && cd tunesmith`
        return
    words = words[words.index("tunesmith") + 1 :]
    if words[0] == "&&":
        return
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        assert words[0] in command.commands, f"{place}: no command {words[0]!r}"
        command = command.commands[words.pop(0)]
    known = {name for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts]}
    known |= {"--help"}
    assert [word for word in words if word.startswith("--") and word not in known] == []
